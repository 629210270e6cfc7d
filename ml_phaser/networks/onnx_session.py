"""The bundled networks in ONNX Runtime: torch is not needed, nor looked at.

What is bundled as ONNX is the graph alone. Its weights are those of the safetensors file, checked by the model card's
hash and handed to the session by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_phaser import arrays
from ml_phaser.errors import UserError
from ml_phaser.networks import shells
from ml_phaser.networks.config import CrysFormerConfig, HandConfig, ProjectorConfig, UNetConfig
from ml_phaser.networks.store import (
    FOLDER,
    HAND_JUDGE,
    PROJECTOR,
    Weights,
    config_from,
    configured,
    one_shot_config,
    read_graph,
    read_weights,
)  # fmt: skip

Floats = NDArray[np.float32]


class Session:
    """One graph with its weights, in ONNX Runtime on ``threads`` threads of the processor."""

    def __init__(self, graph: bytes, weights: Weights, path: Path, threads: int = 1) -> None:
        try:
            import onnxruntime as ort
        except ImportError:
            raise UserError("ONNX Runtime is not installed", hint="pip install onnxruntime") from None
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4  # what is wrong is said below
        try:
            options.add_external_initializers(
                list(weights), [ort.OrtValue.ortvalue_from_numpy(w) for w in weights.values()]
            )
            self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base but this
            why = " ".join(str(error).split())[:150]
            raise UserError(f"ONNX Runtime {ort.__version__} cannot take it ({why})", str(path), UPDATE) from None
        self.inputs = tuple(i.name for i in self._session.get_inputs())

    def __call__(self, *values: Floats) -> list[Any]:
        """Outputs of the graph, for its inputs in their order."""
        return self._session.run(None, {k: np.ascontiguousarray(v) for k, v in zip(self.inputs, values, strict=True)})


UPDATE = "pip install --upgrade onnxruntime, or reinstall ml_phaser"


class OnnxProjector:
    """The learned projection, as ``projector.Projector``, on numpy arrays."""

    place = arrays.NUMPY

    def __init__(self, config: ProjectorConfig, session: Session) -> None:
        self.config, self._session = config, session

    def __call__(self, maps: Floats, cond: Floats) -> Floats:
        return np.asarray(self._session(maps, cond)[0])


class OnnxHandJudge:
    """The hand judge, as ``hand.HandJudge``, on numpy arrays."""

    place = arrays.NUMPY

    def __init__(self, config: HandConfig, session: Session, weights: Weights) -> None:
        self.config, self._session = config, session
        self._log_scale, self._log_lapse = weights["log_scale"], weights["log_lapse"]
        self._shells = [shells.Shell(r) for r in config.radii]

    def __call__(self, rho: Floats, frac: Floats, d_min: Floats) -> Floats:
        seen = shells.surroundings(rho, frac, self._shells)
        parts = [
            self._session(d_min, *(x[:, i : i + shells.CHUNK] for x in seen))[0]
            for i in range(0, seen[0].shape[1], shells.CHUNK)
        ]
        return np.concatenate(parts, axis=1)

    def log_odds(self, mean: Floats, volume: Floats) -> Floats:
        return np.asarray(shells.log_odds(mean, volume, self._log_scale, self._log_lapse))


class OnnxOneShot:
    """A one-shot network, as ``unet.UNet`` and ``crysformer.CrysFormer``, on numpy arrays."""

    def __init__(self, config: UNetConfig | CrysFormerConfig, session: Session) -> None:
        self.config, self._session = config, session

    def __call__(self, patterson: Floats, parts: Floats, recycled: Floats, lengths: Floats) -> Floats:
        given = {"patterson": patterson, "parts": parts, "recycled": recycled, "lengths": lengths}
        return np.asarray(self._session(*(given[name] for name in self._session.inputs))[0])


def onnx_projector(name: str = PROJECTOR, folder: Path = FOLDER, threads: int = 1) -> OnnxProjector:
    """The learned projection; UserError if its graph or weights are not those the card was written for."""
    card, weights, path = read_weights(name, folder)
    config = config_from(card.config, str(path))
    return OnnxProjector(config, Session(read_graph(card, folder), weights, path, threads))


def onnx_hand_judge(name: str = HAND_JUDGE, folder: Path = FOLDER, threads: int = 1) -> OnnxHandJudge:
    """The hand judge; UserError as for ``onnx_projector``."""
    card, weights, path = read_weights(name, folder)
    config = configured(HandConfig, card.config, str(path))
    unused = ("log_scale", "log_lapse")  # by the graph
    graph_weights = {k: v for k, v in weights.items() if k not in unused}
    return OnnxHandJudge(config, Session(read_graph(card, folder), graph_weights, path, threads), weights)


def onnx_one_shot(name: str, folder: Path = FOLDER, threads: int = 1) -> OnnxOneShot:
    """A one-shot network; UserError as for ``onnx_projector``."""
    card, weights, path = read_weights(name, folder)
    config = one_shot_config(card.facts.get("kind"), card.config, str(path))
    used = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    return OnnxOneShot(config, Session(read_graph(card, folder), used, path, threads))
