"""What calculates, for every engine and whatever is installed."""

from __future__ import annotations

import pytest

from ml_phaser import arrays
from ml_phaser.errors import UserError
from ml_phaser.networks.runtime import BARE, FALLBACK, NO_JUDGE, choose_runtime

BOTH, TORCH, ONNX, NONE = {"torch", "onnxruntime"}, {"torch"}, {"onnxruntime"}, set()


@pytest.fixture
def only(monkeypatch):
    """Pretend that of the two libraries only some are installed."""
    return lambda libraries: monkeypatch.setattr(arrays, "installed", lambda name: name in libraries)


@pytest.mark.parametrize(
    ("engine", "there", "place", "networks", "said"),
    [
        ("auto", BOTH, "cpu", "torch", ()),
        ("classical", TORCH, "cpu", "torch", ()),
        ("learned", BOTH, "cpu", "torch", ()),
        ("onnx", BOTH, "numpy", "onnx", ()),
        ("onnx", ONNX, "numpy", "onnx", ()),
        ("auto", ONNX, "numpy", "onnx", (FALLBACK,)),
        ("auto", NONE, "numpy", "", (BARE,)),
        ("classical", ONNX, "numpy", "onnx", ()),
        ("classical", NONE, "numpy", "", (NO_JUDGE,)),
    ],
)
def test_what_is_there_is_used(only, engine, there, place, networks, said) -> None:
    only(there)
    runtime = choose_runtime(engine, "cpu")
    assert (runtime.place, runtime.networks, runtime.said, runtime.device) == (place, networks, said, "cpu")


@pytest.mark.parametrize(
    ("engine", "device", "there", "words"),
    [
        ("onnx", "cuda", BOTH, "runs on the processor"),
        ("onnx", "auto", TORCH, "ONNX Runtime is not installed"),
        ("learned", "auto", ONNX, "PyTorch is not installed.*engine onnx"),
        ("learned", "auto", NONE, "PyTorch is not installed"),
        ("auto", "cuda", ONNX, "PyTorch is not installed.*device auto"),
    ],
)
def test_what_is_missing_is_named(only, engine, device, there, words) -> None:
    only(there)
    with pytest.raises(UserError, match=words):
        choose_runtime(engine, device)
