"""The bundled networks in ONNX Runtime: the same numbers as in torch, one truth for the weights, nothing unchecked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch

from ml_phaser.cli.export import main
from ml_phaser.errors import UserError
from ml_phaser.handedness import log_odds
from ml_phaser.networks.config import CONDITIONS, MAPS, ProjectorConfig
from ml_phaser.networks.projector import Projector
from ml_phaser.networks.store import (
    FOLDER,
    HAND_JUDGE,
    PROJECTOR,
    bundled_one_shot,
    load_hand_judge,
    load_one_shot,
    load_projector,
    read_card,
    read_weights,
    save_projector,
)
from ml_phaser.phasing import prediction
from ml_phaser.phasing.prediction import predict

onnxruntime = pytest.importorskip("onnxruntime")

from ml_phaser.networks.onnx_session import onnx_hand_judge, onnx_one_shot, onnx_projector  # noqa: E402

SHAPES = (((16, 16, 16), 1), ((8, 12, 20), 2), ((24, 4, 28), 3))
CELL = gemmi.UnitCell(11.0, 9.5, 13.1, 84, 101, 96)


def maps_and_conditions(shape: tuple[int, int, int], n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    return rng.normal(size=(n, MAPS, *shape)).astype(np.float32), rng.normal(size=(n, CONDITIONS)).astype(np.float32)


def in_torch(network: Projector, maps: np.ndarray, cond: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(torch.from_numpy(maps), torch.from_numpy(cond)).numpy()


@pytest.mark.parametrize("name", [p.stem for p in sorted(FOLDER.glob("projector-*.json"))])
def test_the_bundled_projection_is_that_of_torch(name: str) -> None:
    network, session = load_projector(name), onnx_projector(name)
    assert session.config == network.config
    for shape, n in SHAPES:
        given = maps_and_conditions(shape, n)
        got = session(*given)
        assert got.dtype == np.float32 and got.shape == (n, *shape)
        assert np.abs(got - in_torch(network, *given)).max() < 1e-4


@pytest.mark.parametrize("shape", [(20, 16, 24), (12, 18, 10), (56, 56, 60)])  # the last takes two chunks
def test_the_bundled_hand_judge_is_that_of_torch(shape: tuple[int, int, int]) -> None:
    judge, session = load_hand_judge(), onnx_hand_judge()
    rho = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    frac, d_min = np.array(CELL.frac.mat.tolist(), dtype=np.float32)[None], np.full(1, 1.6, dtype=np.float32)
    with torch.no_grad():
        wanted = judge(*map(torch.from_numpy, (rho, frac, d_min))).numpy()
    got = session(rho, frac, d_min)
    assert got.shape == (1, rho.size // 8) and np.abs(got - wanted).max() < 1e-4 * max(1.0, np.abs(wanted).max())
    mean, volume = np.array([0.3, -0.02], dtype=np.float32), np.array([900.0, 1500.0], dtype=np.float32)
    theirs = judge.log_odds(torch.from_numpy(mean), torch.from_numpy(volume)).detach().numpy()
    np.testing.assert_allclose(session.log_odds(mean, volume), theirs, rtol=1e-4)


@pytest.mark.parametrize("name", [card.name for card in bundled_one_shot()])
@pytest.mark.parametrize("count", [1, 3])
def test_a_bundled_one_shot_network_is_that_of_torch(name: str, count: int) -> None:
    network, session = load_one_shot(name), onnx_one_shot(name)
    side = network.config.stride * 4
    rng = np.random.default_rng(1)
    patterson, recycled = (rng.normal(size=(count, 1, side, side, side)).astype(np.float32) for _ in range(2))
    parts = np.zeros((count, network.config.parts, side, side, side), dtype=np.float32)
    lengths = np.full((count, 3), 10, dtype=np.float32)
    given = (patterson, parts, recycled, lengths)
    with torch.no_grad():
        wanted = network(*map(torch.from_numpy, given)).numpy()
    assert wanted.std() > 1e-3
    np.testing.assert_allclose(session(*given), wanted, atol=1e-4)


def test_predictions_recycle_alike_in_numpy_and_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "has_bfloat16", lambda kind: False)  # three passes make much of its rounding
    name = bundled_one_shot()[0].name
    shape = (12, 12, 12)
    half = np.fft.rfftn(np.random.default_rng(2).normal(size=(1, *shape)), axes=(1, 2, 3), norm="ortho")
    half = half.astype(np.complex64)
    parts, lengths = np.zeros((1, 0, *shape), dtype=np.float32), np.full((1, 3), 10, dtype=np.float32)
    tensors = (torch.from_numpy(x) for x in (parts, lengths))
    theirs = predict(load_one_shot(name), torch.from_numpy(half), shape, *tensors, 2)
    ours = predict(onnx_one_shot(name), half, shape, parts, lengths, 2)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == (1, *shape) and np.corrcoef(a.ravel(), b.numpy().ravel())[0, 1] > 0.9999


def test_both_judges_say_the_same_of_a_solution() -> None:
    hkl = np.asarray(gemmi.make_miller_array(CELL, gemmi.SpaceGroup("P 1"), 1.5), dtype=np.int32)
    sites = np.random.default_rng(4).random((30, 3))
    f = np.exp(-11 * np.asarray(CELL.calculate_1_d2_array(hkl)) / 4) * np.exp(2j * np.pi * hkl @ sites.T).sum(axis=1)
    both = [log_odds(j, hkl, f, CELL, gemmi.SpaceGroup("P 1")) for j in (load_hand_judge(), onnx_hand_judge())]
    assert both[0] == pytest.approx(both[1], abs=1e-3) and both[0] != 0


# ------------------------------------------------------------------------------------------ one truth, checked


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda p: p.stem)
def test_bundled_graphs_hold_no_weights_and_name_no_machine(path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    raw = path.with_suffix(".onnx").read_bytes()
    assert len(raw) < 200_000
    model = onnx.load_from_string(raw)
    weights = {k: w for k, w in read_weights(path.stem)[1].items() if not k.endswith("num_batches_tracked")}
    external = {i.name for i in model.graph.initializer if i.data_location == onnx.TensorProto.EXTERNAL}
    assert external <= set(weights) and sum(weights[n].size for n in set(weights) - external) <= 2
    assert not any(n.doc_string or n.metadata_props for n in model.graph.node)
    assert model.opset_import[0].version == read_card(path.stem).facts["onnx"]["opset"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path in FOLDER.glob(f"{PROJECTOR}.*"):
        shutil.copy(path, tmp_path)
    return tmp_path


def test_a_changed_graph_is_refused(folder: Path) -> None:
    path = folder / f"{PROJECTOR}.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match="the ONNX graph is not that of the model card"):
        onnx_projector(folder=folder)
    path.unlink()
    with pytest.raises(UserError, match="the ONNX graph file is missing"):
        onnx_projector(folder=folder)


def test_changed_weights_are_refused(folder: Path) -> None:
    path = folder / f"{PROJECTOR}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match="the weights are not those of the model card"):
        onnx_projector(folder=folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"onnx": None}, "no ONNX graph.*ml_phaser export graphs"),
        ({"onnx": {"opset": 20}}, "damaged model card"),
        ({"config": {"channels": [64, 128], "attention": 2}}, "unknown network configuration"),
    ],
)
def test_a_card_that_says_something_else_is_refused(folder: Path, change: dict, words: str) -> None:
    card = folder / f"{PROJECTOR}.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), **change}))
    with pytest.raises(UserError, match=words):
        onnx_projector(folder=folder)


def test_new_weights_of_the_same_network_need_no_new_graph(folder: Path) -> None:
    facts = read_card(PROJECTOR, folder).facts["onnx"]
    network = Projector(ProjectorConfig(d_best=1.27))
    save_projector(network.state_dict(), network.config, {}, PROJECTOR, folder)
    assert read_card(PROJECTOR, folder).facts["onnx"] == facts
    given = maps_and_conditions((8, 8, 8), 1)
    wanted = in_torch(load_projector(PROJECTOR, folder), *given)
    assert np.abs(onnx_projector(PROJECTOR, folder)(*given) - wanted).max() < 1e-4
    other = Projector(ProjectorConfig(blocks=(2, 2)))
    save_projector(other.state_dict(), other.config, {}, PROJECTOR, folder)
    assert "onnx" not in read_card(PROJECTOR, folder).facts


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    """The graph is the right one, and so are all hashes: what the file holds is not."""
    facts = read_card(PROJECTOR, folder).facts
    small = ProjectorConfig(channels=(8, 16), blocks=(1, 1))
    save_projector(Projector(small).state_dict(), small, {"onnx": facts["onnx"]}, PROJECTOR, folder)
    with pytest.raises(UserError, match="cannot take it"):
        onnx_projector(folder=folder)


# -------------------------------------------------------------------------------------------------- export


def test_exported_files_need_nothing_of_ours(tmp_path: Path, monkeypatch, capsys) -> None:
    onnx = pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    assert main(["onnx"]) == 0
    names = sorted(p.stem for p in FOLDER.glob("*.json"))
    assert sorted(p.stem for p in tmp_path.glob("*.onnx")) == names and PROJECTOR in capsys.readouterr().out
    session = onnxruntime.InferenceSession(tmp_path / f"{PROJECTOR}.onnx")
    assert [i.name for i in session.get_inputs()] == ["maps", "cond"]
    network = load_projector()
    for shape, n in SHAPES:
        maps, cond = maps_and_conditions(shape, n)
        (got,) = session.run(None, {"maps": maps, "cond": cond})
        assert np.abs(got - in_torch(network, maps, cond)).max() < 1e-4
    for name in names:
        card = read_card(name)
        props = onnxruntime.InferenceSession(f"{name}.onnx").get_modelmeta().custom_metadata_map
        assert props["network"] == name and props["sha256"] == card.sha256
        assert json.loads(props["config"]) == card.config
        model = onnx.load(f"{name}.onnx")
        assert props["opset"] == str(card.facts["onnx"]["opset"]) == str(model.opset_import[0].version)
    judge = load_hand_judge()
    props = onnxruntime.InferenceSession(f"{HAND_JUDGE}.onnx").get_modelmeta().custom_metadata_map
    assert float(props["log_scale"]) == pytest.approx(judge.log_scale.item())
    assert float(props["log_lapse"]) == pytest.approx(judge.log_lapse.item())


def test_one_network_goes_where_it_is_wanted(tmp_path: Path, capsys) -> None:
    out = tmp_path / "mine.onnx"
    assert main(["ONNX", "--network", "Projector-Small", "OUT", str(out)]) == 0
    assert out.stat().st_size > 10_000_000
    before = out.stat().st_mtime_ns
    with pytest.raises(UserError, match="exists already"):
        main(["onnx", "network", PROJECTOR, "out", str(out)])
    assert out.stat().st_mtime_ns == before
    assert main(["onnx", "network", PROJECTOR, "out", str(out), "overwrite", "yes"]) == 0
    assert out.stat().st_mtime_ns != before
    assert main(["onnx", "network", HAND_JUDGE, "out", str(tmp_path)]) == 0 and (tmp_path / "hand-judge.onnx").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tensorflow"], "means nothing here"),
        (["onnx", "network", "gpt"], r"no such network.*hand-judge projector-small"),
        (["onnx", "opset", "3"], "not an option"),
        (["onnx", "network", PROJECTOR, "out", "x.pt"], "not the name of an ONNX file"),
        (["onnx", "out", "nowhere"], "no such folder"),
        (["onnx", "folder", "nowhere"], "holds no networks"),
        (["onnx", "overwrite", "perhaps"], "neither yes nor no"),
        (["onnx", "network", PROJECTOR, "out", "nowhere/x.onnx"], "cannot be written|no such folder"),
    ],
)
def test_wrong_words_are_named(words: list[str], said: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        main(words)
    assert not list(tmp_path.iterdir())


def test_graphs_of_ones_own_network(tmp_path: Path, capsys) -> None:
    """Traced, its weights left out, then exported with them: any batch, any grid."""
    pytest.importorskip("onnxscript")
    torch.manual_seed(1)
    config = ProjectorConfig(channels=(8,), blocks=(1,))
    network = Projector(config)
    with torch.no_grad():
        for value in network.parameters():
            value.copy_((value + 0.2 * torch.randn(value.shape)).half())
    save_projector(network.state_dict(), config, {"note": "kept"}, "projector-own", tmp_path)
    with pytest.raises(UserError, match="no ONNX graph"):
        main(["onnx", "folder", str(tmp_path), "out", str(tmp_path)])
    assert main(["graphs", "folder", str(tmp_path)]) == 0
    assert read_card("projector-own", tmp_path).facts["note"] == "kept"
    session = onnx_projector("projector-own", tmp_path)
    for shape, n in (((4, 6, 8), 1), ((10, 2, 6), 3)):
        given = maps_and_conditions(shape, n)
        assert np.abs(session(*given) - in_torch(network, *given)).max() < 1e-4
    for end in (".json", ".safetensors"):
        (tmp_path / f"projector-own{end}").rename(tmp_path / f"crystal-ball{end}")
    with pytest.raises(UserError, match="networks of this kind cannot be exported"):
        main(["graphs", "folder", str(tmp_path)])


@pytest.mark.parametrize("name", ["crysformer-dialanine-2A", "CRYSFORMER-dialanine-2a"])
def test_a_network_is_named_in_any_case(name: str, tmp_path: Path) -> None:
    assert main(["onnx", "network", name, "out", str(tmp_path / "x.onnx")]) == 0
    assert (tmp_path / "x.onnx").stat().st_size > 1_000_000
