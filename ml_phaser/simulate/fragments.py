"""Protein coordinates to cut training crystals from, split by entry and by sequence cluster."""

from __future__ import annotations

import csv
import hashlib
import io
import lzma
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ml_phaser.atomic import atomic
from ml_phaser.crystal.residues import ATOMS, ELEMENTS, MOST_ATOMS, RESIDUES
from ml_phaser.errors import UserError

BARRED = ("holdout", "similar_to_measured_set", "crysformer_test")  # flags of entries that are never trained on
STRETCH = 20  # residues of identical sequence that no training chain shares with those
LONGEST_BOND = 1.7  # A, C-N of residues that follow each other


@dataclass(frozen=True, eq=False)
class Residues:
    """What the atoms of a library belong to.

    aa : (residues,) index into RESIDUES; mask : (residues,) which of its ATOMS are there, bit by bit;
    number : (residues,) as deposited; start : (chains + 1,) first residue of each chain; chain : (chains,) name
    """

    aa: NDArray[np.int8]
    mask: NDArray[np.uint16]
    number: NDArray[np.int32]
    start: NDArray[np.int64]
    chain: NDArray[np.str_]

    @cached_property
    def first(self) -> NDArray[np.int64]:
        """(residues + 1,) first atom of each residue."""
        return np.concatenate([[0], np.cumsum(self.present.sum(axis=1))])

    @property
    def present(self) -> NDArray[np.bool_]:
        """(residues, 14) which atoms are there."""
        return (self.mask[:, None] >> np.arange(MOST_ATOMS, dtype=np.uint16)) & 1 == 1

    def elements(self) -> NDArray[np.int8]:
        """(n,) index into ELEMENTS of every atom."""
        table = np.zeros((len(RESIDUES), MOST_ATOMS), dtype=np.int8)
        for i, residue in enumerate(RESIDUES):
            names = ATOMS[residue]
            table[i, : len(names)] = [ELEMENTS.index(name[0]) for name in names]
        present = self.present
        return np.broadcast_to(table[self.aa], present.shape)[present]


@dataclass(frozen=True, eq=False)
class Fragment:
    """Consecutive residues of a chain as deposited.

    source : entry, chain and position (from 1, of the residues modelled) of the first, e.g. "1a1x_A_12";
    sequence : one-letter codes; names : of the n atoms; residue : (n,) from 0; xyz : (n, 3) A; b : (n,) A^2
    """

    source: str
    sequence: str
    names: tuple[str, ...]
    residue: NDArray[np.int64]
    xyz: NDArray[np.float64]
    b: NDArray[np.float64]

    @property
    def elements(self) -> tuple[str, ...]:
        return tuple(name[0] for name in self.names)

    def at(self, keep: NDArray[np.bool_]) -> Fragment:
        """Some of its atoms."""
        names = tuple(name for name, k in zip(self.names, keep, strict=True) if k)
        return replace(self, names=names, residue=self.residue[keep], xyz=self.xyz[keep], b=self.b[keep])


@dataclass(frozen=True, eq=False)
class Library:
    """Chains of one split.

    Attributes
    ----------
    xyz : (n, 3) float32, A
    element : (n,) int8, index into ELEMENTS
    b : (n,) float32, A^2
    start : (chains + 1,) first atom of each chain
    entry : (chains,) PDB id
    cluster : (chains,) number of the 30 % sequence cluster, 0 ... clusters - 1
    digest : sha256 of the chains taken: names, clusters, elements, B factors and coordinates relative to the first atom
    residues : None where a compact file was written by a version that kept none
    """

    xyz: NDArray[np.float32]
    element: NDArray[np.int8]
    b: NDArray[np.float32]
    start: NDArray[np.int64]
    entry: NDArray[np.str_]
    cluster: NDArray[np.int64]
    digest: str
    residues: Residues | None = None

    def __len__(self) -> int:
        return len(self.entry)

    def chain(self, i: int) -> tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.float32]]:
        """Coordinates, elements and B factors of chain ``i``."""
        s = slice(int(self.start[i]), int(self.start[i + 1]))
        return self.xyz[s], self.element[s], self.b[s]

    def draw(self, rng: np.random.Generator) -> int:
        """A random chain: first a cluster, then one of its members, so that large families do not dominate."""
        members = np.flatnonzero(self.cluster == rng.integers(self.cluster.max() + 1))
        return int(rng.choice(members))

    @property
    def named(self) -> Residues:
        """The residues. Raises UserError where the library has none."""
        if self.residues is None:
            raise UserError("holds no residues", "the coordinates", "the folder, or a file packed by this version")
        return self.residues

    def fragment(self, i: int, first: int, count: int | None = None) -> Fragment:
        """``count`` residues (all, if None) of chain ``i`` from the one at position ``first``, from 0, whatever is
        missing in them.

        Raises
        ------
        IndexError
            where the chain has no such residues
        """
        r = self.named
        length = int(r.start[i + 1] - r.start[i])
        count = length - first if count is None else count
        if not (first >= 0 and 0 < count <= length - first):
            raise IndexError(f"residues {first} to {first + count} of {length}")
        rows = slice(int(r.start[i]) + first, int(r.start[i]) + first + count)
        atoms = slice(int(r.first[rows.start]), int(r.first[rows.stop]))
        letters = [RESIDUES[k] for k in r.aa[rows]]
        present = [(np.arange(MOST_ATOMS), int(m)) for m in r.mask[rows]]
        names = [
            tuple(ATOMS[x][k] for k in bits if m >> int(k) & 1) for x, (bits, m) in zip(letters, present, strict=True)
        ]
        return Fragment(
            f"{self.entry[i]}_{r.chain[i]}_{first + 1}", "".join(letters), tuple(n for some in names for n in some),
            np.repeat(np.arange(count), [len(some) for some in names]),
            self.xyz[atoms].astype(np.float64), self.b[atoms].astype(np.float64),
        )  # fmt: skip

    def complete(self, i: int, count: int) -> NDArray[np.int64]:
        """Positions in chain ``i`` from which ``count`` residues follow, bonded to each other, with all their atoms."""
        good, bonded = self._sound
        r = self.named
        s = slice(int(r.start[i]), int(r.start[i + 1]))
        n = s.stop - s.start - count + 1
        if n <= 0:
            return np.zeros(0, dtype=np.int64)
        gaps = np.concatenate([[0], np.cumsum(~good[s])])
        breaks = np.concatenate([[0], np.cumsum(~bonded[s])])
        whole = (gaps[count:] == gaps[:-count]) & (breaks[count - 1 : -1] == breaks[:n])
        return np.flatnonzero(whole)

    @cached_property
    def _sound(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Residues with all their atoms; residues bonded to the next of their chain."""
        r = self.named
        full = np.array([(1 << len(ATOMS[x])) - 1 for x in RESIDUES], dtype=np.uint16)
        good = r.mask == full[r.aa]
        linked = np.zeros(len(r.aa), dtype=bool)
        both = np.flatnonzero((r.mask[:-1] & 4 > 0) & (r.mask[1:] & 1 > 0))
        carbon = r.first[both] + np.array([bin(int(m) & 3).count("1") for m in r.mask[both]], dtype=np.int64)
        linked[both] = np.linalg.norm(self.xyz[carbon] - self.xyz[r.first[both + 1]], axis=1) < LONGEST_BOND
        linked[r.start[1:] - 1] = False
        return good, linked


def _chains_of_split(folder: Path, split: str) -> dict[tuple[str, str], str]:
    """(entry, chain) -> cluster for one split."""
    with (folder / "index.csv").open(newline="") as f:
        index = {row["id"]: row for row in csv.DictReader(f)}
    with (folder / "chains.csv").open(newline="") as f:
        chains = [(r["entry"], r["chain"], r["cluster30"]) for r in csv.DictReader(f)]

    def flag(entry: str, name: str) -> bool:
        return index[entry][name] == "1"

    chains = [row for row in chains if row[0] in index]
    if split == "crysformer":
        return {(e, ch): c for e, ch, c in chains if flag(e, "crysformer_test")}
    if split == "holdout":
        return {(e, ch): c for e, ch, c in chains if flag(e, "holdout") and not flag(e, "similar_to_measured_set")}
    closed = {c for e, _, c in chains if any(flag(e, b) for b in BARRED)}

    def trained(entry: str, cluster: str) -> bool:
        row = index[entry]
        good = not row["r_free"] or float(row["r_free"]) <= 0.28
        return (
            good
            and int(row["n_residues"]) >= 40
            and not any(flag(entry, b) for b in (*BARRED, "antibody_set"))
            and cluster not in closed
        )

    train = {(e, ch): c for e, ch, c in chains if trained(e, c)}
    if split == "train":
        return train
    closed |= set(train.values())
    return {(e, ch): c for e, ch, c in chains if c not in closed}


def load_library(place: str | Path, split: str) -> Library:
    """Read protein coordinates.

    Parameters
    ----------
    place : a folder with structures_pack.npz.xz, index.csv, chains.csv, or a file that ``save_library`` wrote
    split : "train"; "holdout", for tests; "crysformer", the entries of the published test fragments; "validation",
        what is left of the other clusters: small or less well refined entries, for whatever is fitted to a trained
        network. No entry, no 30 % sequence cluster and no stretch of 20 residues of "train" or "validation" is in
        another

    Raises
    ------
    UserError
        missing or damaged files, or a file that holds the other split
    """
    place = Path(place)
    try:
        return _load_folder(place, split) if place.is_dir() else _load_file(place, split)
    except FileNotFoundError as error:
        raise UserError(
            "no such file or folder", str(error.filename or place), "the folder of the coordinates"
        ) from None
    except (OSError, EOFError, KeyError, ValueError, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot be read ({type(error).__name__})", str(place), "copy it again") from None


def _load_folder(folder: Path, split: str) -> Library:
    raw = (folder / "structures_pack.npz.xz").read_bytes()
    archive = np.load(io.BytesIO(lzma.decompress(raw)))
    pack = {name: archive[name] for name in archive.files}  # each is decoded anew whenever it is asked for
    wanted = _chains_of_split(folder, split)

    everything = Residues(
        pack["aa"].astype(np.int8), pack["mask"], np.cumsum(pack["resnum_delta"], dtype=np.int32),
        np.zeros(1, dtype=np.int64), np.zeros(0, dtype=str),
    )  # fmt: skip
    element, offset, b_factors = everything.elements(), everything.first, pack["b"]
    steps = pack["dx_hi"].astype(np.int16) * 256 + pack["dx_lo"]

    closed = _closed_stretches(folder, pack, split)
    taken = []
    for row in zip(*(pack[k] for k in ("entry", "chain", "chain_start", "chain_len", "chain_origin")), strict=True):
        e, ch, s, n, origin = row
        cluster = wanted.get((e.decode(), ch.decode()))
        if cluster is not None and closed.isdisjoint(_stretches(everything.aa[s : s + n])):
            a = slice(int(offset[s]), int(offset[s + n]))
            xyz = (np.cumsum(steps[:, a].astype(np.int64), axis=1).T / 100.0 + origin).astype(np.float32)
            taken.append((e.decode(), ch.decode(), cluster, slice(int(s), int(s + n)), a, xyz))
    entries, chains, names, rows, atoms, xyz = zip(*taken, strict=True)
    _, cluster_number = np.unique(names, return_inverse=True)
    residues = Residues(
        np.concatenate([everything.aa[s] for s in rows]), np.concatenate([everything.mask[s] for s in rows]),
        np.concatenate([everything.number[s] for s in rows]), _starts([s.stop - s.start for s in rows]),
        np.array(chains),
    )  # fmt: skip
    return _library(
        np.concatenate(xyz), np.concatenate([element[a] for a in atoms]),
        np.concatenate([b_factors[a] for a in atoms]).astype(np.float32), _starts([a.stop - a.start for a in atoms]),
        np.array(entries), cluster_number.astype(np.int64), residues,
    )  # fmt: skip


def _stretches(aa: NDArray) -> set[bytes]:
    """All runs of STRETCH residues in a chain."""
    text = aa.astype(np.uint8).tobytes()
    return {text[k : k + STRETCH] for k in range(len(text) - STRETCH + 1)}


def _closed_stretches(folder: Path, pack: Mapping[str, NDArray], split: str) -> set[bytes]:
    """Runs of residues that may not be in a split because of others: fusion partners escape the clustering of whole
    chains."""
    if split not in ("train", "validation"):
        return set()
    with (folder / "index.csv").open(newline="") as f:
        barred = {row["id"] for row in csv.DictReader(f) if any(row[flag] == "1" for flag in BARRED)}
    trained = _chains_of_split(folder, "train") if split == "validation" else {}
    aa, found = pack["aa"], set[bytes]()
    for e, ch, s, n in zip(pack["entry"], pack["chain"], pack["chain_start"], pack["chain_len"], strict=True):
        if e.decode() in barred or (e.decode(), ch.decode()) in trained:
            found |= _stretches(aa[s : s + n])
    return found


def _starts(lengths: list[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _steps(xyz: NDArray, start: NDArray) -> NDArray[np.int16]:
    """Differences (n, 3) from atom to atom in 0.01 A; 0 at the first atom of a chain."""
    steps = np.diff(xyz.astype(np.float64), axis=0, prepend=xyz[:1])
    steps[start[:-1]] = 0
    return np.round(steps * 100).astype(np.int16)


def _library(
    xyz: NDArray, element: NDArray, b: NDArray, start: NDArray, entry: NDArray, cluster: NDArray,
    residues: Residues | None = None,
) -> Library:  # fmt: skip
    digest = hashlib.sha256(",".join(f"{e}:{c}" for e, c in zip(entry, cluster, strict=True)).encode())
    for part in (start.astype("<i8"), element.astype("<i1"), b.astype("<f4"), _steps(xyz, start).astype("<i2")):
        digest.update(part.tobytes())
    return Library(xyz, element, b, start, entry, cluster, digest.hexdigest(), residues)


def save_library(library: Library, path: Path, split: str) -> None:
    """Write one split as a compact file for ``load_library``, e.g. to carry it to another machine.

    Coordinates are kept to 0.01 A (those of the source), relative to the first atom of each chain, so that training
    crystals and ``digest`` stay the same. B factors above 255 A^2 become 255.
    """
    steps = _steps(library.xyz, library.start)
    arrays = {
        # Planes of high and low bytes, axis by axis, compress better than whole numbers.
        "high": (steps >> 8).astype(np.int8).T,
        "low": (steps & 255).astype(np.uint8).T,
        "b": np.clip(np.round(library.b), 0, 255).astype(np.uint8),
        "start": library.start,
        "entry": library.entry,
        "cluster": library.cluster,
        "split": np.array(split),
    }
    r = library.residues
    if r is None:
        arrays["element"] = library.element
    else:
        arrays |= {"aa": r.aa, "mask": r.mask, "residue_start": r.start, "chain": r.chain}
        arrays["number"] = np.diff(r.number, prepend=np.int32(0))
    with atomic(path) as tmp, zipfile.ZipFile(tmp, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)


def _load_file(path: Path, split: str) -> Library:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as pack:
        held = str(pack["split"].item())
        if held != split:
            raise UserError(f"holds the {held} split, not {split}", str(path), "the folder of the coordinates")
        start = pack["start"]
        steps = (pack["high"].astype(np.int16) * 256 + pack["low"]).T.astype(np.int64)
        along = np.cumsum(steps, axis=0)
        origin = np.repeat(along[start[:-1]], np.diff(start), axis=0)
        xyz = ((along - origin) / 100.0).astype(np.float32)
        b = pack["b"].astype(np.float32)
        if "aa" not in pack:
            return _library(xyz, pack["element"], b, start, pack["entry"], pack["cluster"])
        number = np.cumsum(pack["number"], dtype=np.int32)
        residues = Residues(pack["aa"], pack["mask"], number, pack["residue_start"], pack["chain"])
        return _library(xyz, residues.elements(), b, start, pack["entry"], pack["cluster"], residues)
