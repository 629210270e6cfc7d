"""ONNX graphs of networks, made with torch: without weights, which stay in the safetensors file alone.

``EXPORTABLE`` is the table of what can be exported, one entry a family; a network belongs to the family that its name
begins with, as projector-small to "projector".
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ml_phaser.atomic import atomic
from ml_phaser.errors import UserError
from ml_phaser.networks.config import CONDITIONS, MAPS, CrysFormerConfig, HandConfig, ProjectorConfig, UNetConfig
from ml_phaser.networks.crysformer import CrysFormer
from ml_phaser.networks.hand import HandJudge
from ml_phaser.networks.projector import Projector
from ml_phaser.networks.store import Card, config_from, configured, read_card
from ml_phaser.networks.unet import UNet

OPSET = 20  # ONNX Runtime 1.18 and later
EXTERNAL = "weights"  # what graphs call the file that their weights are not read from


@dataclass(frozen=True)
class Exportable:
    """How networks of one family are exported.

    network : from a card's configuration and where it stands; its forward is what is exported
    inputs, outputs : their names
    examples : inputs of any allowed size, for tracing; axes : the sizes of each input that may vary
    """

    network: Callable[[dict[str, Any], str], torch.nn.Module]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    examples: Callable[[Any], tuple[torch.Tensor, ...]]
    axes: Callable[[Any], tuple[dict[int, Any], ...]]


class _Evidence(HandJudge):
    """The hand judge from a map's surroundings on; before that come Fourier transforms, which stay outside."""

    def forward(  # type: ignore[override]
        self, d_min: torch.Tensor, rho: torch.Tensor, s: torch.Tensor, v: torch.Tensor, t: torch.Tensor
    ) -> torch.Tensor:
        return self.local(d_min, rho, s, v, t)[0]


def _of_grid(config: ProjectorConfig) -> tuple[torch.Tensor, ...]:
    side = 4 * config.stride
    return torch.zeros((2, MAPS, side, side, side)), torch.zeros((2, CONDITIONS))


def _grid_axes(config: ProjectorConfig) -> tuple[dict[int, Any], ...]:
    batch, *sides = (torch.export.Dim(name, min=2) for name in ("batch", "u", "v", "w"))
    return {0: batch, **{2 + i: config.stride * side for i, side in enumerate(sides)}}, {0: batch}


def _of_points(config: HandConfig) -> tuple[torch.Tensor, ...]:
    k = len(config.radii)
    return torch.zeros(2), *(torch.zeros((2, 6, *rest)) for rest in ((1,), (1, k), (3, k), (6, k)))


def _point_axes(config: HandConfig) -> tuple[dict[int, Any], ...]:
    batch, points = torch.export.Dim("batch", min=2), torch.export.Dim("points", min=2)
    return {0: batch}, *({0: batch, 1: points} for _ in range(4))


def _of_patterson(config: UNetConfig | CrysFormerConfig) -> tuple[torch.Tensor, ...]:
    side = 6 * config.stride
    maps = torch.zeros((2, 1, side, side, side))
    return maps, torch.zeros((2, config.parts, side, side, side)), maps.clone(), torch.full((2, 3), 10.0)


def _patterson_axes(config: UNetConfig | CrysFormerConfig) -> tuple[dict[int, Any], ...]:
    batch = torch.export.Dim("batch", min=1)
    sides = (torch.export.Dim(name, min=2) for name in ("u", "v", "w"))
    maps = {0: batch, **{2 + i: config.stride * side for i, side in enumerate(sides)}}
    return maps, maps, maps, {0: batch}


def _one_shot(kind: Callable[[Any], torch.nn.Module], configuration: type[Any]) -> Exportable:
    return Exportable(
        lambda values, where: kind(configured(configuration, values, where)),
        ("patterson", "parts", "recycled", "lengths"), ("density",), _of_patterson, _patterson_axes,
    )  # fmt: skip


EXPORTABLE: dict[str, Exportable] = {
    "projector": Exportable(
        lambda values, where: Projector(config_from(values, where)),
        ("maps", "cond"), ("density",), _of_grid, _grid_axes,
    ),
    "hand": Exportable(
        lambda values, where: _Evidence(configured(HandConfig, values, where)),
        ("d_min", "rho", "s", "v", "t"), ("evidence",), _of_points, _point_axes,
    ),
    "unet": _one_shot(UNet, UNetConfig),
    "crysformer": _one_shot(CrysFormer, CrysFormerConfig),
}  # fmt: skip


def family(name: str) -> Exportable:
    """How the network ``name`` is exported; UserError where that is not known."""
    try:
        return EXPORTABLE[name.split("-")[0]]
    except KeyError:
        hint = f"a name that begins with {' or '.join(f'{k}-' for k in EXPORTABLE)}"
        raise UserError("networks of this kind cannot be exported", name, hint) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's words about its own names and about libraries that nobody asked for are kept away."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def graph_of(card: Card, where: str) -> bytes:
    """The ONNX model of a card's network, its weights left out, and nothing in it about the machine it was made on."""
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch's exporter needs it, and says so less clearly)
    except ImportError as error:
        raise UserError(f"{error.name} is not installed", "export graphs", "pip install onnx onnxscript") from None
    kind = family(card.name)
    network: Any = kind.network(card.config, where).eval()
    with _quiet():
        # Not optimised: that would merge weights into constants, and ONNX Runtime does it when it loads them.
        program = torch.onnx.export(
            network, kind.examples(network.config), dynamo=True, optimize=False, opset_version=OPSET, verbose=False,
            input_names=list(kind.inputs), output_names=list(kind.outputs), dynamic_shapes=kind.axes(network.config),
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    weights = set(network.state_dict())
    del model.graph.value_info[:], model.metadata_props[:], model.graph.metadata_props[:]
    model.graph.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    for weight in model.graph.initializer:
        weight.doc_string = ""
        del weight.metadata_props[:]
        if weight.name in weights:
            weight.ClearField("raw_data")
            weight.data_location = onnx.TensorProto.EXTERNAL
            weight.external_data.add(key="location", value=EXTERNAL)
    return bytes(model.SerializeToString())


def write_graph(name: str, folder: Path) -> Path:
    """Write ``name.onnx`` beside a network's card, and into the card its hash and opset; returns the path."""
    card = read_card(name, folder)
    path, card_path = folder / f"{name}.onnx", folder / f"{name}.json"
    raw = graph_of(card, str(card_path))
    facts = {"opset": OPSET, "sha256": hashlib.sha256(raw).hexdigest(), "torch": torch.__version__.split("+")[0]}
    with atomic(path) as tmp:
        tmp.write_bytes(raw)
    with atomic(card_path) as tmp:
        tmp.write_text(json.dumps({**card.facts, "onnx": facts}, indent=1) + "\n", encoding="utf-8")
    return path
