"""Weights on disk: what is written comes back, and nothing else is accepted."""

import json

import pytest
import torch

from ml_phaser.errors import UserError
from ml_phaser.networks.projector import CONDITIONS, MAPS, Projector, ProjectorConfig
from ml_phaser.networks.store import (
    FOLDER,
    HAND_JUDGE,
    LARGE,
    ONE_SHOT,
    PROJECTOR,
    choose_projector,
    load_hand_judge,
    load_one_shot,
    load_projector,
    read_card,
    save_projector,
)

CONFIG = ProjectorConfig(channels=(8, 16), blocks=(2, 1), d_best=1.4, d_worst=1.9)


@pytest.fixture
def network():
    torch.manual_seed(3)
    network = Projector(CONFIG)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.1 * torch.randn(value.shape))
    return network


@pytest.fixture
def card(network, tmp_path):
    return save_projector(network.state_dict(), CONFIG, {"description": "a test"}, "tiny", tmp_path / "new")


def change(card, **values):
    card.write_text(json.dumps({**json.loads(card.read_text()), **values}))


def test_weights_come_back_bit_for_bit_in_half_precision(network, card):
    loaded = load_projector("tiny", card.parent)
    assert loaded.config == CONFIG
    assert not loaded.training
    back = loaded.state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(back[name], value.half().float()), name
    again = save_projector(back, CONFIG, {}, "again", card.parent)
    assert read_card("again", again.parent).sha256 == read_card("tiny", card.parent).sha256


def test_loaded_network_computes_what_was_saved(network, card):
    maps, cond = torch.randn((1, MAPS, 8, 8, 8)), torch.zeros((1, CONDITIONS))
    with torch.no_grad():
        assert torch.allclose(load_projector("tiny", card.parent)(maps, cond), network(maps, cond), atol=0.05)


def test_card_holds_every_field_of_the_configuration(card):
    facts = read_card("tiny", card.parent)
    assert facts.config == {
        "channels": [8, 16], "blocks": [2, 1], "spacing": 0.6, "d_best": 1.4, "d_worst": 1.9,
    }  # fmt: skip
    assert facts.facts["description"] == "a test"
    assert facts.name == json.loads(card.read_text())["name"] == "tiny"


def test_changed_weights_are_refused(card):
    path = card.with_suffix(".safetensors")
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(UserError, match="not those of the model card"):
        load_projector("tiny", card.parent)


def test_missing_files_are_named(card):
    with pytest.raises(UserError, match=r"nobody\.json: no such network"):
        load_projector("nobody", card.parent)
    card.with_suffix(".safetensors").unlink()
    with pytest.raises(UserError, match="weights file is missing"):
        load_projector("tiny", card.parent)


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"sha256": "x"}', '{"config": {}}'])
def test_damaged_cards_are_refused(card, text):
    card.write_text(text)
    with pytest.raises(UserError, match="damaged model card"):
        load_projector("tiny", card.parent)


def test_unknown_configuration_is_refused(card):
    change(card, config={"channels": [8, 16], "blocks": [2, 1], "attention": 4})
    with pytest.raises(UserError, match="unknown network configuration"):
        load_projector("tiny", card.parent)


def test_weights_of_another_network_are_refused(card):
    change(card, config={"channels": [8, 24], "blocks": [2, 1]})
    with pytest.raises(UserError, match="do not fit"):
        load_projector("tiny", card.parent)


def test_a_folder_that_cannot_be_is_the_users_error(network, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_projector(network.state_dict(), CONFIG, {}, "tiny", tmp_path / "file" / "below")


def test_the_large_network_is_for_gpus_and_only_if_it_is_there(network, tmp_path):
    assert choose_projector("cuda", tmp_path) == choose_projector("cpu", tmp_path) == PROJECTOR
    save_projector(network.state_dict(), CONFIG, {}, LARGE, tmp_path)
    assert (choose_projector("cuda", tmp_path), choose_projector("cpu", tmp_path)) == (LARGE, PROJECTOR)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda p: p.stem)
def test_bundled_networks_load(path):
    if path.stem.split("-")[0] in ONE_SHOT:
        network = load_one_shot(path.stem)
        assert network.config.d_min < min(network.config.shortest)
    else:
        network = load_hand_judge() if path.stem == HAND_JUDGE else load_projector(path.stem)
        assert network.config.d_best < network.config.d_worst
    assert all(torch.isfinite(v).all() for v in network.state_dict().values())
