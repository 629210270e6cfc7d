"""What calculates: PyTorch where it is installed, else numpy, with the networks in ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass

from ml_phaser import arrays
from ml_phaser.errors import UserError

FALLBACK = "PyTorch is not installed: this is engine onnx, numpy with the networks in ONNX Runtime."
BARE = (
    "Neither PyTorch nor ONNX Runtime is installed: this is engine classical, in numpy, without a network to judge the "
    "hand. To change: pip install onnxruntime."
)
NO_JUDGE = "The hand is not judged: that needs PyTorch or ONNX Runtime (pip install onnxruntime)."


@dataclass(frozen=True)
class Runtime:
    """place : where arrays are, a torch device or ``arrays.NUMPY``; networks : "torch", "onnx", or "" where they cannot
    run; said : sentences for the log"""

    place: str = "cpu"
    networks: str = "torch"
    said: tuple[str, ...] = ()

    @property
    def device(self) -> str:
        """ "cpu" or "cuda"."""
        return "cpu" if self.place == arrays.NUMPY else self.place


def choose_runtime(engine: str, device: str) -> Runtime:
    """For the engine and device asked for; UserError where what they need is not there."""
    if engine == "onnx" and device == "cuda":
        raise UserError("engine onnx runs on the processor", "device cuda", "engine auto, or device cpu")
    if engine != "onnx" and arrays.installed("torch"):
        return Runtime(torch_device(device))
    if device == "cuda":
        raise UserError("PyTorch is not installed", "device cuda", "device auto, or pip install torch")
    onnx = arrays.installed("onnxruntime")
    if engine == "onnx" and not onnx:
        raise UserError("ONNX Runtime is not installed", "engine onnx", "pip install onnxruntime, or engine auto")
    if engine == "learned":
        raise UserError("PyTorch is not installed", "engine learned", "engine onnx, or pip install torch")
    if engine == "classical":
        return Runtime(arrays.NUMPY, "onnx" if onnx else "", () if onnx else (NO_JUDGE,))
    said = () if engine == "onnx" else (FALLBACK,) if onnx else (BARE,)
    return Runtime(arrays.NUMPY, "onnx" if onnx else "", said)


def torch_device(wanted: str) -> str:
    """ "cuda" or "cpu"; UserError where a GPU was asked for and there is none."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("no usable CUDA device was found", "device cuda", "device cpu, or device auto")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
