"""Bundled weights: safetensors beside a model card (JSON) that says what they are, checked by hash when loaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_phaser.errors import UserError

if TYPE_CHECKING:
    from ml_phaser.networks.projector import Projector, ProjectorConfig

FOLDER = Path(__file__).resolve().parent.parent / "weights"
PROJECTOR = "projector-small"


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
    except (KeyError, ValueError) as error:
        raise UserError(f"damaged model card ({error})", str(path), "reinstall ml_phaser") from None


def load_projector(name: str = PROJECTOR, folder: Path = FOLDER) -> Projector:
    """The network in evaluation mode; UserError if the weights are not those the card was written for."""
    from safetensors.torch import load

    from ml_phaser.networks.projector import Projector, ProjectorConfig

    card = read_card(name, folder)
    path = folder / f"{name}.safetensors"
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError("the weights file is missing", str(path), "reinstall ml_phaser") from None
    if hashlib.sha256(raw).hexdigest() != card.sha256:
        raise UserError("the weights are not those of the model card", str(path), "reinstall ml_phaser")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in card.config.items()}
    try:
        config = ProjectorConfig(**values)
    except TypeError as error:
        raise UserError(f"unknown network configuration ({error})", str(path), "update ml_phaser") from None
    network = Projector(config)
    network.load_state_dict({k: v.float() for k, v in load(raw).items()})
    return network.eval()


def save_projector(
    state: dict[str, Any], config: ProjectorConfig, facts: dict[str, Any], name: str, folder: Path
) -> Path:
    """Write half-precision weights and their card; returns the path of the card."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    raw = save({k: v.detach().half().contiguous().cpu() for k, v in state.items()})
    (folder / f"{name}.safetensors").write_bytes(raw)
    card = {"name": name, "sha256": hashlib.sha256(raw).hexdigest(), "config": asdict(config), **facts}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(card, indent=1) + "\n")
    return path
