"""Protein coordinates to cut training crystals from, split by entry and by sequence cluster."""

from __future__ import annotations

import csv
import hashlib
import io
import lzma
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ml_phaser.atomic import atomic
from ml_phaser.errors import UserError

ELEMENTS = ("C", "N", "O", "S")
_RESIDUES = "ARNDCQEGHILKMFPSTWYV"
# First letters of the atoms of each residue, in the order in which the pack's bit mask counts them.
_SIDE = {
    "G": "", "A": "C", "S": "CO", "C": "CS", "T": "COC", "V": "CCC", "P": "CCC", "L": "CCCC", "I": "CCCC",
    "N": "CCON", "D": "CCOO", "Q": "CCCON", "E": "CCCOO", "K": "CCCCN", "R": "CCCNCNN", "M": "CCSC",
    "H": "CCNCCN", "F": "CCCCCCC", "Y": "CCCCCCCO", "W": "CCCCNCCCCC",
}  # fmt: skip


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
    """

    xyz: NDArray[np.float32]
    element: NDArray[np.int8]
    b: NDArray[np.float32]
    start: NDArray[np.int64]
    entry: NDArray[np.str_]
    cluster: NDArray[np.int64]
    digest: str

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


def _chains_of_split(folder: Path, split: str) -> dict[tuple[str, str], str]:
    """(entry, chain) -> cluster for the training core ("train") or the held-out entries ("holdout")."""
    with (folder / "index.csv").open(newline="") as f:
        index = {row["id"]: row for row in csv.DictReader(f)}
    with (folder / "chains.csv").open(newline="") as f:
        chains = [(r["entry"], r["chain"], r["cluster30"]) for r in csv.DictReader(f)]

    def flag(entry: str, name: str) -> bool:
        return index[entry][name] == "1"

    barred = ("holdout", "similar_to_measured_set", "crysformer_test")
    closed = {c for e, _, c in chains if any(flag(e, b) for b in barred)}

    def wanted(entry: str, cluster: str) -> bool:
        row = index[entry]
        if split == "holdout":
            return flag(entry, "holdout") and not flag(entry, "similar_to_measured_set")
        good = not row["r_free"] or float(row["r_free"]) <= 0.28
        return (
            good
            and int(row["n_residues"]) >= 40
            and not any(flag(entry, b) for b in (*barred, "antibody_set"))
            and cluster not in closed
        )

    return {(e, ch): c for e, ch, c in chains if e in index and wanted(e, c)}


def load_library(place: str | Path, split: str) -> Library:
    """Read protein coordinates.

    Parameters
    ----------
    place : a folder with structures_pack.npz.xz, index.csv, chains.csv, or a file that ``save_library`` wrote
    split : "train" or "holdout"; no entry and no 30 % sequence cluster is in both

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
    pack = np.load(io.BytesIO(lzma.decompress(raw)))
    wanted = _chains_of_split(folder, split)

    table = np.zeros((20, 14), dtype=np.int8)
    for i, residue in enumerate(_RESIDUES):
        atoms = "NCCO" + _SIDE[residue]
        table[i, : len(atoms)] = [ELEMENTS.index(a) for a in atoms]
    present = (pack["mask"][:, None] >> np.arange(14, dtype=np.uint16)) & 1 == 1
    element = np.broadcast_to(table[pack["aa"]], present.shape)[present]
    atom_offset = np.concatenate([[0], np.cumsum(present.sum(axis=1))])
    steps = pack["dx_hi"].astype(np.int16) * 256 + pack["dx_lo"]
    b_all = pack["b"]

    xyz, elements, b, start, entries, names = [], [], [], [0], [], []
    for e, ch, s, n, origin in zip(
        pack["entry"],
        pack["chain"],
        pack["chain_start"],
        pack["chain_len"],
        pack["chain_origin"],
        strict=True,
    ):
        cluster = wanted.get((e.decode(), ch.decode()))
        if cluster is None:
            continue
        a = slice(int(atom_offset[s]), int(atom_offset[s + n]))
        xyz.append((np.cumsum(steps[:, a].astype(np.int64), axis=1).T / 100.0 + origin).astype(np.float32))
        elements.append(element[a])
        b.append(b_all[a].astype(np.float32))
        start.append(start[-1] + (a.stop - a.start))
        entries.append(e.decode())
        names.append(cluster)
    _, cluster_number = np.unique(names, return_inverse=True)
    return _library(
        np.concatenate(xyz),
        np.concatenate(elements),
        np.concatenate(b),
        np.array(start, dtype=np.int64),
        np.array(entries),
        cluster_number.astype(np.int64),
    )


def _steps(xyz: NDArray, start: NDArray) -> NDArray[np.int16]:
    """Differences (n, 3) from atom to atom in 0.01 A; 0 at the first atom of a chain."""
    steps = np.diff(xyz.astype(np.float64), axis=0, prepend=xyz[:1])
    steps[start[:-1]] = 0
    return np.round(steps * 100).astype(np.int16)


def _library(xyz: NDArray, element: NDArray, b: NDArray, start: NDArray, entry: NDArray, cluster: NDArray) -> Library:
    digest = hashlib.sha256(",".join(f"{e}:{c}" for e, c in zip(entry, cluster, strict=True)).encode())
    for part in (start.astype("<i8"), element.astype("<i1"), b.astype("<f4"), _steps(xyz, start).astype("<i2")):
        digest.update(part.tobytes())
    return Library(xyz, element, b, start, entry, cluster, digest.hexdigest())


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
        "element": library.element,
        "b": np.clip(np.round(library.b), 0, 255).astype(np.uint8),
        "start": library.start,
        "entry": library.entry,
        "cluster": library.cluster,
        "split": np.array(split),
    }
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
        return _library(xyz, pack["element"], b, start, pack["entry"], pack["cluster"])
