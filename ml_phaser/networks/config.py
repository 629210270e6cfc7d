"""What networks are told, and their configurations: known without torch."""

from __future__ import annotations

from dataclasses import dataclass

from ml_phaser.arrays import Array, namespace

MAPS = 3  # maps the learned projection sees
CONDITIONS = 11  # numbers it is told


@dataclass(frozen=True)
class ProjectorConfig:
    """Architecture and domain.

    channels : features at each level, finest (2 grid points) first; blocks : residual blocks at each level, passed on
        the way down and, but for the coarsest, on the way up
    spacing : grid spacing in A the network is trained at; d_best, d_worst : resolution range claimed, in A
    """

    channels: tuple[int, ...] = (64, 128)
    blocks: tuple[int, ...] = (2, 3)
    spacing: float = 0.6
    d_best: float = 1.25
    d_worst: float = 2.2

    @property
    def stride(self) -> int:
        """Grid dimensions must be multiples of this."""
        return 2 ** len(self.channels)


@dataclass(frozen=True)
class HandConfig:
    """Architecture and domain.

    radii : of the shells, A; each is blurred by a quarter of itself
    hidden : width of the network of invariants; products : triple products of each kind
    spacing : largest grid spacing in A; d_best, d_worst : resolution range claimed, in A
    """

    radii: tuple[float, ...] = (1.0, 1.4, 1.9, 2.4, 3.0, 3.8, 4.8, 6.2)
    hidden: int = 160
    products: int = 32
    spacing: float = 0.6
    d_best: float = 1.25
    d_worst: float = 2.2

    @property
    def stride(self) -> int:
        """Grid dimensions must be multiples of this."""
        return 2


@dataclass(frozen=True)
class UNetConfig:
    """Architecture and domain.

    edge, features : channels of encoder and decoder, and of the residual blocks; blocks : their number
    squeeze : squeeze-and-excitation in the blocks; parts : maps of residues as channels; recycled : a channel for an
        earlier prediction
    family : of training crystals; d_min, spacing : A; shortest, longest : cell edges in A
    """

    edge: int = 23
    features: int = 25
    blocks: int = 7
    squeeze: bool = False
    parts: int = 0
    recycled: bool = False
    family: str = "dialanine-1b"
    d_min: float = 1.5
    spacing: float = 0.5
    shortest: tuple[float, float, float] = (10.0, 10.0, 10.0)
    longest: tuple[float, float, float] = (10.0, 10.0, 10.0)

    @property
    def stride(self) -> int:
        """Grid dimensions must be multiples of this."""
        return 2


@dataclass(frozen=True)
class CrysFormerConfig:
    """Architecture and domain.

    dim, depth, heads, widen : of the transformer, the feed-forward layer being ``widen`` times as wide
    stem : channels before the tokens and after; patch : grid points along each side of a patch
    parts : maps of residues by themselves that it may attend to, 0 or more; recycled : a channel for an earlier
        prediction
    family : of training crystals; d_min, spacing : A; shortest, longest : cell edges in A
    """

    dim: int = 256
    depth: int = 8
    heads: int = 8
    widen: int = 4
    stem: int = 16
    patch: int = 4
    parts: int = 0
    recycled: bool = True
    family: str = "dipeptide-minimal"
    d_min: float = 1.5
    spacing: float = 0.5
    shortest: tuple[float, float, float] = (4.0, 4.0, 4.0)
    longest: tuple[float, float, float] = (20.0, 20.0, 20.0)

    @property
    def stride(self) -> int:
        """Grid dimensions must be multiples of this."""
        return self.patch


def condition(d_min: Array, steps: Array, completeness: Array) -> Array:
    """What the network is told, (B, CONDITIONS), order-one numbers; the map's quality is told by ``tell``.

    Parameters
    ----------
    d_min : (B,) A; completeness : (B,) 0-1
    steps : (B, 3, 3) A, the grid's steps along a, b, c as columns: spacing, its differences, angles of oblique cells
    """
    xp = namespace(steps)
    lengths = (steps**2).sum(axis=1) ** 0.5
    spacing = lengths.mean(axis=1)
    metric = xp.swapaxes(steps, 1, 2) @ steps / spacing[:, None, None] ** 2  # 1 on the diagonal where the grid is cubic
    nothing = xp.zeros_like(d_min)
    return xp.stack(
        [
            (d_min - 1.7) / 0.3, (spacing - 0.6) / 0.05, (completeness - 0.9) / 0.1,
            *((metric[:, i, i] - 1) / 0.15 for i in range(3)),
            *(metric[:, i, j] / 0.3 for i, j in ((1, 2), (0, 2), (0, 1))),
            nothing, nothing,
        ],
        axis=1,
    )  # fmt: skip
