"""Protein coordinates to cut training crystals from, split by entry and by sequence cluster."""

from __future__ import annotations

import csv
import hashlib
import io
import lzma
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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
    digest : sha256 of the pack and of the list of chains taken
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


def load_library(folder: str | Path, split: str) -> Library:
    """Read the coordinate pack.

    Parameters
    ----------
    folder : holds structures_pack.npz.xz, index.csv, chains.csv
    split : "train" or "holdout"; no entry and no 30 % sequence cluster is in both
    """
    folder = Path(folder)
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
    listing = ",".join(f"{e}:{c}" for e, c in zip(entries, names, strict=True)).encode()
    return Library(
        np.concatenate(xyz),
        np.concatenate(elements),
        np.concatenate(b),
        np.array(start, dtype=np.int64),
        np.array(entries),
        cluster_number.astype(np.int64),
        hashlib.sha256(raw + listing).hexdigest(),
    )
