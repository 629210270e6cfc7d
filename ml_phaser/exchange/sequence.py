"""Sequences of a user: FASTA, PIR, or plain one-letter codes; checked before they go on to another program."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from ml_phaser.errors import UserError

AMINO_ACIDS = frozenset("ACDEFGHIKLMNPQRSTVWYBZXUOJ")
NUCLEOTIDES = frozenset("ACGTUNI")
RESIDUE_MASS = {"protein": 110.0, "nucleic acid": 325.0}  # Da, mean
_PIR = re.compile(r">(P1|F1|DL|DC|RL|RC|N1|N3|D1|XX);")
_OPTION = "seqin"


@dataclass(frozen=True)
class Chain:
    """One chain: its name (may be empty), one-letter codes in capitals."""

    name: str
    letters: str

    @property
    def kind(self) -> str:
        """ "protein", or "nucleic acid" where all letters are those of bases (four at least, two of them different)."""
        bases = set(self.letters) <= NUCLEOTIDES and len(self.letters) >= 4 and len(set(self.letters)) > 1
        return "nucleic acid" if bases else "protein"


@dataclass(frozen=True)
class Sequence:
    """What a sequence file holds. ``format`` is "FASTA", "PIR" or "plain letters"."""

    path: Path
    format: str
    chains: tuple[Chain, ...]

    @property
    def mass(self) -> float:
        """Of all chains, in Da, from mean residue masses."""
        return sum(RESIDUE_MASS[c.kind] * len(c.letters) for c in self.chains)

    @property
    def kinds(self) -> frozenset[str]:
        """Kinds of its chains."""
        return frozenset(c.kind for c in self.chains)


def read_sequence(path: Path) -> Sequence:
    """The chains of a sequence file.

    Raises
    ------
    UserError : a file that cannot be read, holds no letters, or letters that are no amino acids or bases
    """
    where = f"{_OPTION} {path}"
    hint = "a FASTA file: a line >name, then lines of one-letter codes"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError("is not a text file", where, hint) from error
    except OSError as error:
        raise UserError(f"cannot be read ({(error.strerror or str(error)).lower()})", where, hint) from error
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if not line.startswith(";")]
    headed = any(line.startswith(">") for line in lines)
    pir = any(_PIR.match(line) for line in lines)
    chains = _headed(lines, where, hint) if headed else [Chain("", _letters(lines, where, hint))]
    chains = [c for c in chains if c.letters]
    if not chains:
        raise UserError("holds no sequence", where, hint)
    return Sequence(path, "PIR" if pir else "FASTA" if headed else "plain letters", tuple(chains))


def fasta(sequence: Sequence) -> str:
    """The same chains as FASTA, 60 letters a line."""
    blocks = []
    for i, chain in enumerate(sequence.chains, start=1):
        name = re.sub(r"[^\x20-\x7e]", "?", chain.name) or f"chain {i}"
        blocks += [f">{name}", *textwrap.wrap(chain.letters, 60)]
    return "\n".join(blocks) + "\n"


def _headed(lines: list[str], where: str, hint: str) -> list[Chain]:
    """Chains that each begin with a line ">name"; after PIR's, the next line is a title."""
    chains: list[Chain] = []
    name: str | None = None
    body: list[str] = []
    title = False
    for line in [*lines, ">"]:
        if line.startswith(">"):
            if name is not None:
                chains.append(Chain(name, _letters(body, where, hint)))
            elif any(body):
                raise UserError("has letters before its first line >name", where, hint)
            title = bool(_PIR.match(line))
            name, body = line[4:].strip() if title else line[1:].strip(), []
        elif title:
            title = False
        else:
            body.append(line)
    return chains


def _letters(lines: list[str], where: str, hint: str) -> str:
    """One-letter codes of lines: blanks and position numbers dropped, up to the * that may end them."""
    text = re.sub(r"[\s\d]", "", "".join(lines)).upper().partition("*")[0]
    strange = sorted(set(text) - AMINO_ACIDS)
    if strange:
        raise UserError(f"holds {' '.join(strange[:8])}, which stand for no amino acid or base", where, hint)
    return text
