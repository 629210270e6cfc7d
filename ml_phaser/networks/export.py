"""A bundled network as one ONNX file that needs nothing else: the bundled graph with its weights, and what it is."""

from __future__ import annotations

import json
from pathlib import Path

from ml_phaser import __version__
from ml_phaser.errors import UserError
from ml_phaser.networks.store import FOLDER, read_graph, read_weights


def self_contained(name: str, folder: Path = FOLDER) -> bytes:
    """The ONNX model ``name`` of a folder of networks.

    Its metadata name the program, the network, the hash of its weights, its configuration and the opset, and those
    weights that the graph does not use, which are single numbers. UserError where its files are not those of its card.
    """
    try:
        import onnx
    except ImportError:
        raise UserError("the package onnx is not installed", "export", "pip install onnx") from None
    card, weights, path = read_weights(name, folder)
    model = onnx.load_from_string(read_graph(card, folder))
    left = dict(weights)
    for weight in model.graph.initializer:
        if weight.data_location != onnx.TensorProto.EXTERNAL:
            continue
        value = left.pop(weight.name, None)
        if value is None or tuple(weight.dims) != value.shape:
            raise UserError("the weights do not fit the ONNX graph", str(path), "reinstall ml_phaser")
        weight.CopyFrom(onnx.numpy_helper.from_array(value, weight.name))
    facts = {
        "program": f"ml_phaser {__version__}", "network": name, "sha256": card.sha256,
        "config": json.dumps(card.config), "opset": str(opset(model)), **{k: repr(float(v)) for k, v in left.items()},
    }  # fmt: skip
    onnx.helper.set_model_props(model, facts)
    model.producer_name, model.producer_version = "ml_phaser", __version__
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def opset(model: object) -> int:
    """Version of the operators of ONNX itself that a model (``onnx.ModelProto``) uses."""
    return int(next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")))  # type: ignore[attr-defined]
