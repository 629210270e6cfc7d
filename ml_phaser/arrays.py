"""Arrays of the phasing engine: torch tensors or numpy arrays, told apart by what they are.

The engine is written once, in what both libraries spell alike: operators, methods such as ``x.mean(axis=..., keepdims=
True)``, and those functions of the array API standard (data-apis.org) that ``namespace(x)`` has in either. What they
spell differently is here and nowhere else. torch is only looked at where somebody else has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np
import scipy.fft
import scipy.special
from numpy.typing import NDArray

Array: TypeAlias = Any  # a torch.Tensor or a numpy array
Generator: TypeAlias = Any  # a torch.Generator or a Twister, for starts of the one kind or the other

NUMPY = "numpy"  # where arrays are, beside torch's names of devices: "cpu", "cuda"
AXES = (-3, -2, -1)  # of a map

_workers = 1  # threads of scipy's transforms


def installed(library: str) -> bool:
    """Whether a library can be imported, which it is not for that."""
    try:
        return find_spec(library) is not None
    except (ImportError, ValueError):
        return False


def set_threads(count: int, place: str) -> None:
    """Processor threads for what comes, with arrays at ``place``."""
    global _workers
    _workers = count
    if place != NUMPY:
        import torch

        torch.set_num_threads(count)


def is_torch(x: Array) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def namespace(x: Array) -> Any:
    """The library of an array, for functions it has under the standard's names."""
    return sys.modules["torch"] if is_torch(x) else np


def put(x: NDArray, place: str) -> Array:
    """A numpy array as the array of the same type that lies at ``place``: NUMPY, or a torch device."""
    if place == NUMPY:
        return x
    import torch

    return torch.from_numpy(x).to(place)


def beside(x: NDArray, other: Array) -> Array:
    """A numpy array as an array of the same kind and at the same place as ``other``."""
    return sys.modules["torch"].from_numpy(x).to(other.device) if is_torch(other) else x


def to_numpy(x: Array) -> NDArray:
    """The numpy array of the same values."""
    return x.detach().cpu().numpy() if is_torch(x) else np.asarray(x)


def astype(x: Array, other: Array) -> Array:
    """The array with the data type of ``other``."""
    return x.to(other.dtype) if is_torch(x) else x.astype(other.dtype)


def zeros(shape: tuple[int, ...], other: Array) -> Array:
    """Zeros of the kind, place and data type of ``other``."""
    return other.new_zeros(shape) if is_torch(other) else np.zeros(shape, dtype=other.dtype)


def rfftn(x: Array) -> Array:
    """Half-complex coefficients (..., u, v, w // 2 + 1) of maps, orthonormal; in the precision of the maps."""
    if is_torch(x):
        return sys.modules["torch"].fft.rfftn(x, dim=AXES, norm="ortho")
    return scipy.fft.rfftn(x, axes=AXES, norm="ortho", workers=_workers)


def irfftn(half: Array, shape: tuple[int, ...]) -> Array:
    """Maps on the grid ``shape`` (u, v, w) of half-complex coefficients, orthonormal; in their precision."""
    if is_torch(half):
        return sys.modules["torch"].fft.irfftn(half, s=shape, dim=AXES, norm="ortho")
    return scipy.fft.irfftn(half, s=shape, axes=AXES, norm="ortho", workers=_workers)


def kth(x: Array, k: int) -> Array:
    """The ``k``-th smallest value along the last axis, the first being 1."""
    return x.kthvalue(k, dim=-1).values if is_torch(x) else np.partition(x, k - 1, axis=-1)[..., k - 1]


def sim(x: Array) -> Array:
    """I1(x) / I0(x), ratio of modified Bessel functions, of x >= 0."""
    special = sys.modules["torch"].special if is_torch(x) else scipy.special
    return special.i1e(x) / special.i0e(x)


@contextmanager
def no_gradients(x: Array) -> Iterator[None]:
    """What is done with arrays like ``x`` is not recorded for derivatives."""
    if not is_torch(x):
        yield
        return
    with sys.modules["torch"].no_grad():
        yield


# ----------------------------------------------------------------------------------------- random starts


class Twister:
    """Normal deviates as torch draws them on a processor, so that a seed means the same starts in both kinds of arrays.

    The Mersenne twister (Matsumoto & Nishimura, ACM Trans. Model. Comput. Simul. 8, 3, 1998), seeded by its authors'
    first method; 24 bits of a word make a uniform deviate, eight and eight of these make sixteen normal ones (Box &
    Muller, Ann. Math. Stat. 29, 610, 1958).
    """

    def __init__(self, seed: int) -> None:
        self._words = np.random.MT19937()
        self._words._legacy_seeding(seed)

    def normal(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Deviates of zero mean and unit variance; at least 16 of them."""
        n = int(np.prod(shape))
        uniform = self._uniform(n)
        out = np.empty(n, dtype=np.float32)
        whole = n - n % 16
        out[:whole] = _box_muller(uniform[:whole])
        if n % 16:
            out[-16:] = _box_muller(self._uniform(16))
        return out.reshape(shape)

    def integer(self) -> int:
        """From 0 to 2^31 - 1."""
        return int(self._words.random_raw(2)[1]) % 2**31

    def _uniform(self, n: int) -> NDArray[np.float32]:
        return (self._words.random_raw(n) & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)


def _box_muller(uniform: NDArray[np.float32]) -> NDArray[np.float32]:
    u = uniform.reshape(-1, 2, 8)
    radius, angle = np.sqrt(-2 * np.log1p(-u[:, 0])), np.float32(2 * np.pi) * u[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


def generator(seed: int, other: Array) -> Generator:
    """Random numbers for starts beside ``other``."""
    return sys.modules["torch"].Generator().manual_seed(seed) if is_torch(other) else Twister(seed)


def normal(shape: tuple[int, ...], source: Generator) -> Array:
    """Normal deviates in single precision, of the kind that ``source`` makes."""
    if isinstance(source, Twister):
        return source.normal(shape)
    return sys.modules["torch"].randn(shape, generator=source)


def integer(source: Generator) -> int:
    """A random number from 0 to 2^31 - 1, to seed another source with."""
    if isinstance(source, Twister):
        return source.integer()
    return int(sys.modules["torch"].randint(2**31, (1,), generator=source))
