"""Bundled networks: weights (safetensors) and an ONNX graph without weights, beside a model card (JSON) that says what
they are and has their hashes, which are checked when they are loaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ml_phaser.atomic import atomic, cannot_write
from ml_phaser.errors import UserError
from ml_phaser.networks.config import CrysFormerConfig, HandConfig, ProjectorConfig, UNetConfig

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ml_phaser.networks.crysformer import CrysFormer
    from ml_phaser.networks.hand import HandJudge
    from ml_phaser.networks.projector import Projector
    from ml_phaser.networks.unet import UNet

FOLDER = Path(__file__).resolve().parent.parent / "weights"
PROJECTOR, LARGE = "projector-small", "projector-large"
HAND_JUDGE = "hand-judge"
DOMAIN = ("spacing", "d_best", "d_worst")  # of a configuration: for which data a network is, not what it is
LARGEST = 25_000_000  # bytes of one weights file: what a package may bring along

Weights = dict[str, NDArray[np.float32]]
Config = TypeVar("Config")
Network = TypeVar("Network", bound="nn.Module")


@dataclass(frozen=True)
class Card:
    """A model card: ``config`` of the network, sha256 of the weights file, and everything else as it stands."""

    name: str
    sha256: str
    config: dict[str, Any]
    facts: dict[str, Any]


def read_card(name: str = PROJECTOR, folder: Path = FOLDER) -> Card:
    """Model card ``folder/name.json``; UserError when it is missing or lacks what is needed."""
    path = folder / f"{name}.json"
    try:
        facts = json.loads(path.read_text())
        return Card(name, facts["sha256"], facts["config"], facts)
    except FileNotFoundError:
        raise UserError("no such network is bundled", str(path), "reinstall ml_phaser") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"damaged model card ({error})", str(path), "reinstall ml_phaser") from None


def choose_projector(device: str, folder: Path = FOLDER) -> str:
    """The bundled projector for "cpu" or "cuda": the large one needs a GPU, and there is one only if it was trained."""
    return LARGE if device == "cuda" and (folder / f"{LARGE}.json").exists() else PROJECTOR


def load_projector(name: str = PROJECTOR, folder: Path = FOLDER) -> Projector:
    """The network in evaluation mode; UserError if the weights are not those the card was written for."""
    from ml_phaser.networks.projector import Projector

    card, weights, path = read_weights(name, folder)
    return _filled(Projector(config_from(card.config, str(path))), weights, path)


def load_hand_judge(name: str = HAND_JUDGE, folder: Path = FOLDER) -> HandJudge:
    """The hand judge in evaluation mode; UserError if the weights are not those the card was written for."""
    from ml_phaser.networks.hand import HandJudge

    card, weights, path = read_weights(name, folder)
    return _filled(HandJudge(configured(HandConfig, card.config, str(path))), weights, path)


ONE_SHOT: dict[str, type[UNetConfig | CrysFormerConfig]] = {"unet": UNetConfig, "crysformer": CrysFormerConfig}


def bundled_one_shot(folder: Path = FOLDER) -> list[Card]:
    """Model cards of the one-shot networks that come with the program, by name."""
    names = sorted(path.stem for kind in ONE_SHOT for path in folder.glob(f"{kind}-*.json"))
    return [read_card(name, folder) for name in names]


def one_shot_config(kind: object, values: dict[str, Any], where: str) -> UNetConfig | CrysFormerConfig:
    """Configuration of a one-shot network of a card (``where``); UserError for a kind or a configuration that is not
    known."""
    if not isinstance(kind, str) or kind not in ONE_SHOT:
        raise UserError(f"unknown kind of network ({kind})", where, "update ml_phaser")
    return configured(ONE_SHOT[kind], values, where)


def make_one_shot(kind: object, values: dict[str, Any], where: str) -> UNet | CrysFormer:
    """An untrained network of the ``kind`` and configuration a card (``where``) holds; UserError as above."""
    from ml_phaser.networks.crysformer import CrysFormer
    from ml_phaser.networks.unet import UNet

    config = one_shot_config(kind, values, where)
    return UNet(config) if isinstance(config, UNetConfig) else CrysFormer(config)


def load_one_shot(name: str, folder: Path = FOLDER) -> UNet | CrysFormer:
    """A one-shot network in evaluation mode; UserError if the weights are not those the card was written for."""
    card, weights, path = read_weights(name, folder)
    return _filled(make_one_shot(card.facts.get("kind"), card.config, str(path)), weights, path)


def kind_of(values: dict[str, Any], where: str) -> str:
    """Which of ONE_SHOT a checkpoint's configuration describes; UserError if none."""
    for kind, config in ONE_SHOT.items():
        if values.keys() == {field.name for field in fields(config)}:
            return kind
    raise UserError("is not a one-shot network", where, "a checkpoint of ml_phaser train_one_shot")


def read_weights(name: str, folder: Path = FOLDER) -> tuple[Card, Weights, Path]:
    """Card, weights in single precision, and where they lie; UserError if they are not those of the card."""
    from safetensors.numpy import load

    card = read_card(name, folder)
    path = folder / f"{name}.safetensors"
    raw = _checked(path, card.sha256, "weights")
    return card, {k: np.asarray(v, dtype=np.float32) for k, v in load(raw).items()}, path


def read_graph(card: Card, folder: Path = FOLDER) -> bytes:
    """The ONNX graph of a network, without its weights; UserError if it is not the one the card was written for."""
    path = folder / f"{card.name}.onnx"
    facts = card.facts.get("onnx")
    if facts is None:
        raise UserError("the network has no ONNX graph", str(path), f"ml_phaser export graphs folder {folder}")
    try:
        sha256 = facts["sha256"]
    except (KeyError, TypeError):
        raise UserError("damaged model card (onnx)", str(folder / f"{card.name}.json"), "reinstall ml_phaser") from None
    return _checked(path, sha256, "ONNX graph")


def _checked(path: Path, sha256: str, what: str) -> bytes:
    """Content of a file; UserError where it is missing or has another hash."""
    verb = "are" if what.endswith("s") else "is"
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"the {what} file is missing", str(path), "reinstall ml_phaser") from None
    if hashlib.sha256(raw).hexdigest() != sha256:
        those = "those" if what.endswith("s") else "that"
        raise UserError(f"the {what} {verb} not {those} of the model card", str(path), "reinstall ml_phaser")
    return raw


def _filled(network: Network, weights: Weights, path: Path) -> Network:
    import torch

    try:
        network.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})
    except RuntimeError:
        what = "the weights do not fit the network of the model card"
        raise UserError(what, str(path), "reinstall ml_phaser") from None
    return network.eval()


def config_from(values: dict[str, Any], where: str) -> ProjectorConfig:
    """The configuration a card or checkpoint (``where``) holds; UserError if it is not one this program knows."""
    return configured(ProjectorConfig, values, where)


def configured(kind: type[Config], values: dict[str, Any], where: str) -> Config:
    """The same for a network's configuration of any ``kind``."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return kind(**fields)
    except TypeError as error:
        raise UserError(f"unknown network configuration ({error})", where, "update ml_phaser") from None


def _graph_facts(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The entry of the ONNX graph in a card that is to be replaced, where it is good for the new weights too: a graph
    depends on the architecture alone."""
    try:
        old = json.loads(path.read_text())
        before, now = (
            {k: v for k, v in values.items() if k not in DOMAIN}
            for values in (old["config"], json.loads(json.dumps(config)))
        )
        return {"onnx": old["onnx"]} if before == now else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def shipped(value: torch.Tensor) -> torch.Tensor:
    """A weight as it is shipped: kernels and matrices in half precision; biases, norms and counts, which are small and
    may lie outside of its range, as they are."""
    return value.half() if value.is_floating_point() and value.ndim > 1 else value


def check_size(state: dict[str, Any], name: str) -> None:
    """UserError for weights, as they are to be written, of more than LARGEST bytes."""
    size = sum(v.numel() * v.element_size() for v in state.values())
    if size > LARGEST:
        what = f"the weights take {size / 1e6:.1f} MB, more than the {LARGEST / 1e6:g} MB a package may bring along"
        raise UserError(what, name, "a network of smaller width or depth")


def save_one_shot(
    state: dict[str, Any], kind: str, config: Any, facts: dict[str, Any], name: str, folder: Path
) -> Path:
    """Write the weights of a one-shot network of a ``kind`` of ONE_SHOT and their card, found by ``bundled_one_shot``
    where the ``name`` begins with the kind; returns the path of the card. Raises UserError, also for weights of more
    than LARGEST bytes."""
    return _save({k: shipped(v) for k, v in state.items()}, asdict(config), {"kind": kind, **facts}, name, folder)


def save_projector(
    state: dict[str, Any], config: ProjectorConfig | HandConfig, facts: dict[str, Any], name: str, folder: Path
) -> Path:
    """Write half-precision weights (of a projector or hand judge) and their card; returns the path of the card. Raises
    UserError.

    Parameters
    ----------
    state : state dict; facts : of the card, beside name, hash and config
    """
    return _save({k: v.half() for k, v in state.items()}, asdict(config), facts, name, folder)


def _save(state: dict[str, Any], config: dict[str, Any], facts: dict[str, Any], name: str, folder: Path) -> Path:
    try:
        from safetensors.torch import save
    except ImportError:
        raise UserError("safetensors is not installed", hint="pip install safetensors") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    check_size(state, name)
    raw = save({k: v.detach().contiguous().cpu() for k, v in state.items()})
    path = folder / f"{name}.json"
    card = {"name": name, "sha256": hashlib.sha256(raw).hexdigest(), "config": config}
    card |= {**_graph_facts(path, config), **facts}
    # The card last: weights without their card are not taken for another card's, the hash forbids it.
    with atomic(folder / f"{name}.safetensors") as tmp:
        tmp.write_bytes(raw)
    with atomic(path) as tmp:
        tmp.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return path
