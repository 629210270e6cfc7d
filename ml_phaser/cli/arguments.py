"""From what the user typed to checked ``Options``: command line, keywords on standard input, file names.

The command line takes ``hklin data.mtz``, ``HKLIN data.mtz``, ``--hklin data.mtz`` and ``--hklin=data.mtz``
alike. Keywords come in the CCP4 way: one a line, case-insensitive, the first four letters significant, ``#``
and ``!`` comments, a last word ``-`` or ``&`` continues on the next line, ``@file`` includes a file, ``END``
ends. Where both give the same parameter the command line wins, and the log says so.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from ml_phaser.cli.seed_options import check_seeds, seed_files, usual_ending
from ml_phaser.errors import UserError
from ml_phaser.parameters import MAP_SUFFIXES, PARAMETERS, Options, Parameter, beside

BY_NAME = {p.name: p for p in PARAMETERS}
RECORDS = ("jsonout", "xmlout", "reportout")
INPUTS = {p.name for p in PARAMETERS if p.kind == "input"}
DEFAULT_SUFFIX = {
    "hklin": ".mtz",
    "phasein": ".mtz",
    "mapout": ".map",
    "hklout": ".mtz",
    "pattout": ".map",
    "jsonout": ".json",
    "xmlout": ".xml",
    "reportout": ".html",
    "xyzin": ".pdb",
    "xyzout": ".pdb",
    "seqin": ".fasta",
    "shelxout": ".phi",
    "seedin": ".mtz",
    "seedout": ".mtz",
}
YES, NO = ("yes", "true", "on", "1"), ("no", "false", "off", "0")

FIRST_BYTE_WAIT = 0.5  # s; a pipe that somebody left open and will never use must not hang the program
NEXT_BYTE_WAIT = 10.0  # s; keywords that have begun must end
INCLUDE_DEPTH = 10

_TOKEN = re.compile(r"""(?:"[^"]*"|'[^']*'|\S)+""")
_QUOTED = re.compile(r""""([^"]*)"|'([^']*)'""")
_NUMBERS = re.compile(r"[-+.\deE,]*\d[-+.\deE,]*|inf(inity)?", re.IGNORECASE)
_SYMBOL_PART = re.compile(r"-?[12346][1-5]?(/[mabcden])?|[mabcden]|:[12HR]", re.IGNORECASE)


@dataclass(frozen=True)
class Request:
    """What the user asked for: the options, the keyword lines as read, sentences for the log, and the records asked for
    by name: jsonout (not where it is merely the default), xmlout, reportout."""

    options: Options
    data_lines: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    records: dict[str, Path] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------- names


def _plain(word: str) -> str:
    return word.lstrip("-").replace("-", "").replace("_", "").lower()


def find_parameter(word: str, *, keyword: bool = False) -> Parameter | None:
    """The parameter a word means, None if none.

    On the command line: the full name, or its beginning (at least four letters), hyphens and underscores
    ignored. As a ``keyword`` only the first four letters count, as in every CCP4 program; where several parameters
    begin with them (SEED, SEEDIN, SEEDOUT...), as many as tell them apart.
    """
    name = _plain(word)
    if name in BY_NAME:
        return BY_NAME[name]
    if len(name) < 4:
        return None
    found = [p for p in PARAMETERS if p.name[:4] == name[:4]]
    if not keyword or len(found) > 1:
        found = [p for p in found if p.name.startswith(name)]
    return found[0] if len(found) == 1 else None


def unknown(word: str, names: Iterable[str], where: str, what: str) -> UserError:
    """The error for a word that means nothing, with the likeliest thing meant."""
    near = difflib.get_close_matches(_plain(word), list(names), n=1, cutoff=0.6)
    hint = near[0] if near else "ml_phaser --help, which lists them all"
    return UserError(f'unknown {what} "{word}"', where, hint)


# ----------------------------------------------------------------------------------- command line


def _takes(parameter: Parameter, taken: Sequence[str], word: str) -> bool:
    """Whether one more word belongs to the value: ``resolution 20 1.2``, ``spacegroup P 21 21 21``."""
    if parameter.kind in ("resolution", "cell"):
        return len(taken) < (2 if parameter.kind == "resolution" else 6) and bool(_NUMBERS.fullmatch(word))
    if parameter.name in ("labin", "labphase"):
        return "=" in word and not word.startswith("--") and find_parameter(word.split("=")[0]) is None
    if parameter.name == "spacegroup":
        return len(taken[0]) == 1 and bool(_SYMBOL_PART.fullmatch(word))
    return False


def _is_name(word: str, parameter: Parameter) -> bool:
    """Whether a word where a value should be is the next name instead."""
    if parameter.kind in ("input", "output"):
        return word.startswith("--") or word.lower().lstrip("-") in BY_NAME
    return word.startswith("--")


def parse_command_line(words: Sequence[str], commands: Sequence[str] = ()) -> dict[str, str]:
    """Parameter name -> value as typed.

    Parameters
    ----------
    words : the command line after the program's name
    commands : names of the sub-commands, for the suggestion in an error

    Raises
    ------
    UserError
        unknown word, value missing, parameter given twice
    """
    given: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        parameter = find_parameter(name)
        if parameter is None:
            raise _stray(word, first=not given and len(rest) + 1 == len(words), commands=commands)
        if parameter.name in given:
            raise UserError("given twice on the command line", parameter.name, "give it once")
        if parameter.kind == "flag":
            if not equals and rest and rest[0].lower() in YES + NO:
                value = rest.pop(0)
            given[parameter.name] = value or "yes"
            continue
        taken = [value] if equals else []
        if not equals and rest and not _is_name(rest[0], parameter):
            taken.append(rest.pop(0))
        while taken and rest and _takes(parameter, taken, rest[0]):
            taken.append(rest.pop(0))
        if not taken or not taken[0].strip():
            raise UserError("no value given", parameter.name, f"{parameter.name} {example(parameter)}")
        given[parameter.name] = " ".join(taken)
    return given


def _stray(word: str, *, first: bool, commands: Sequence[str]) -> UserError:
    if not word.startswith("-") and (Path(word).is_file() or Path(word).suffix.lower() in DEFAULT_SUFFIX.values()):
        name = "mapout" if Path(word).suffix.lower() in MAP_SUFFIXES else "hklin"
        return UserError("a file name without the word before it", word, f"{name} {word}")
    names = [*BY_NAME, *(commands if first else ()), "help", "version"]
    return unknown(word, names, "command line", "option")


def example(parameter: Parameter) -> str:
    """A value a user could type, for hints."""
    if parameter.choices:
        return "|".join(parameter.choices)
    whole, number = str(int(parameter.low or 1)), "0.5" if parameter.high == 1 else "60"
    by_kind = {"resolution": "20,1.2", "cell": "10,11,12,90,90,90", "int": whole, "float": number}
    by_name = {"hklin": "data.mtz", "mapout": "pred.map", "labin": "F,SIGF", "spacegroup": "P212121"}
    by_name |= {"phasein": "phases.mtz", "labphase": "PHIB=PHI FOM=FOM", "seedin": "seeds.csv"}
    return by_name.get(parameter.name) or by_kind.get(parameter.kind) or "out" + DEFAULT_SUFFIX[parameter.name]


# ---------------------------------------------------------------------------- keywords, standard input


def read_standard_input(
    stream: TextIO | None, *, first_wait: float = FIRST_BYTE_WAIT, next_wait: float = NEXT_BYTE_WAIT
) -> tuple[list[str], str]:
    """Lines of standard input up to END or its end, and a sentence for the log ("" if there is nothing to
    say).

    A terminal is never read. A file is read whole. A pipe or socket that sends nothing for ``first_wait``
    seconds is taken for one that somebody left open: no keywords, and the log says so. Once something has
    come, it must end within ``next_wait`` seconds of silence, else UserError.
    """
    if stream is None or stream.closed or stream.isatty():
        return [], ""
    try:
        handle = stream.fileno()
    except (OSError, ValueError):
        return stream.read().splitlines(), ""
    if sys.platform == "win32":  # select knows no pipes there
        return stream.read().splitlines(), ""
    import select

    received = b""
    try:
        while not _ended(received):
            wait = next_wait if received else first_wait
            if not select.select([handle], [], [], wait)[0]:
                break
            block = os.read(handle, 65536)
            if not block:
                return _decode(received), ""
            received += block
    except OSError as error:
        if received:
            raise UserError(f"cannot be read ({error.strerror})", "standard input", "keywords from a file") from error
        return [], ""
    if _ended(received):
        return _decode(received), ""
    if received:
        raise UserError(f"no END after {next_wait:g} s of silence", "standard input", "a last line END")
    return [], f"standard input was open but silent for {first_wait:g} s: no keywords read"


def _decode(data: bytes) -> list[str]:
    return data.decode("utf-8", errors="replace").splitlines()


def _ended(data: bytes) -> bool:
    complete = data[: data.rfind(b"\n") + 1]
    return any(re.match(rb"\s*END\b", line, re.IGNORECASE) for line in complete.splitlines())


def _without_comment(line: str) -> str:
    words = []
    for match in _TOKEN.finditer(line):
        if match[0][0] in "#!":
            return line[: match.start()].rstrip()
        words.append(match[0])
    return line.rstrip()


def keyword_lines(lines: Iterable[str], *, depth: int = 0) -> Iterator[str]:
    """Logical lines up to and with END: comments removed, continuations joined, ``@file`` replaced by its
    lines.

    Raises
    ------
    UserError
        an included file that cannot be read, or includes itself
    """
    pending = ""
    for raw in lines:
        line = _without_comment(raw).strip()
        if not line:
            continue
        line = f"{pending} {line}".strip()
        pending = ""
        words = line.split()
        if words[-1] in ("-", "&"):
            pending = line[:-1].rstrip()
        elif line.startswith("@"):
            for included in keyword_lines(_included(line[1:].strip(), depth), depth=depth + 1):
                yield included
                if included.upper() == "END":
                    return
        else:
            if words[0].upper() == "END":
                yield "END"
                return
            yield line
    if pending:
        yield pending


def _included(name: str, depth: int) -> list[str]:
    path = Path(_QUOTED.sub(r"\1\2", name)).expanduser()
    if depth >= INCLUDE_DEPTH:
        raise UserError("keyword files include each other without end", str(path), "remove the @ line")
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(
            f"keyword file cannot be read ({error.strerror})",
            f"@{name}",
            "check the spelling of the file name",
        ) from error


def parse_keywords(lines: Iterable[str]) -> dict[str, str]:
    """Parameter name -> value out of logical lines. Raises UserError as ``parse_command_line`` does."""
    given: dict[str, str] = {}
    for line in lines:
        if line == "END":
            break
        match = re.match(r"\s*([^\s=,]+)[\s=,]*(.*)$", line)
        if match is None:
            raise UserError(f'cannot make sense of "{line}"', "keywords", "KEYWORD value")
        word, value = match[1], match[2].strip()
        parameter = find_parameter(word, keyword=True)
        if parameter is None:
            raise unknown(word, [*BY_NAME, "end"], "keywords", "keyword")
        if parameter.name in given:
            raise UserError("given twice among the keywords", parameter.name.upper(), "give it once")
        if parameter.kind == "flag":
            value = value or "yes"
        if not value:
            keyword = parameter.name.upper()
            raise UserError("no value given", keyword, f"{keyword} {example(parameter)}")
        given[parameter.name] = _QUOTED.sub(r"\1\2", value)
    return given


# ------------------------------------------------------------------------------------------- values


def convert(parameter: Parameter, text: str) -> Any:
    """The value of a parameter out of its text; UserError where it is not one."""
    text = text.strip()
    match parameter.kind:
        case "input" | "output":
            return _path(parameter, text)
        case "flag":
            if text.lower() not in YES + NO:
                raise UserError(f'"{text}" is neither yes nor no', parameter.name, f"{parameter.name} yes")
            return text.lower() in YES
        case "choice":
            if text.lower() not in parameter.choices:
                near = difflib.get_close_matches(text.lower(), parameter.choices, n=1, cutoff=0.5)
                raise UserError(
                    f'"{text}" is not one of {", ".join(parameter.choices)}',
                    parameter.name,
                    f"{parameter.name} {near[0] if near else parameter.choices[0]}",
                )
            return text.lower()
        case "int" | "float":
            return _number(parameter, text)
        case "resolution":
            return _resolution(parameter, text)
        case "cell":
            return _cell(parameter, text)
    return text


def _path(parameter: Parameter, text: str) -> Path:
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:  # ~nobody
        raise UserError(str(error).rstrip("."), f"{parameter.name} {text}", "the full path") from None
    if not path.name:
        raise UserError("is a folder", f"{parameter.name} {text}", f"{parameter.name} {example(parameter)}")
    if "\0" in text or any(len(os.fsencode(part)) > 255 for part in path.parts):
        raise UserError("not a possible file name, or too long", f"{parameter.name} {text[:80]}", "another name")
    return path


def _number(parameter: Parameter, text: str) -> float | int:
    whole = parameter.kind == "int"
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        kind = "whole number" if whole else "number"
        raise UserError(f'"{text}" is not a {kind}', parameter.name, f"{parameter.name} {example(parameter)}") from None
    _check_range(parameter, value)
    return value


def _check_range(parameter: Parameter, value: float) -> None:
    low = -math.inf if parameter.low is None else parameter.low
    high = math.inf if parameter.high is None else parameter.high
    if not (low <= value <= high and math.isfinite(value)):
        unit = f" {parameter.unit}" if parameter.unit else ""
        raise UserError(f"{value:.10g} is out of range", parameter.name, f"{low:.10g} to {high:.10g}{unit}")


def _floats(parameter: Parameter, text: str) -> list[float]:
    words = [w for w in re.split(r"[\s,]+", text) if w]
    try:
        return [float(w) for w in words]
    except ValueError:
        raise UserError(f'"{text}" is not made of numbers', parameter.name, example(parameter)) from None


def _resolution(parameter: Parameter, text: str) -> tuple[float, float]:
    limits = _floats(parameter, text)
    if len(limits) not in (1, 2):
        raise UserError(f"{len(limits)} numbers given, one or two wanted", parameter.name, example(parameter))
    d_max, d_min = (math.inf, limits[0]) if len(limits) == 1 else (max(limits), min(limits))
    _check_range(parameter, d_min)
    if not d_max > d_min:
        raise UserError("low and high limit are the same", parameter.name, example(parameter))
    return d_max, d_min


def _cell(parameter: Parameter, text: str) -> tuple[float, ...]:
    values = _floats(parameter, text)
    if len(values) != 6:
        raise UserError(f"{len(values)} numbers given, six wanted", parameter.name, example(parameter))
    lengths, angles = values[:3], values[3:]
    ca, cb, cg = (math.cos(math.radians(x)) for x in angles)
    square = 1 - ca * ca - cb * cb - cg * cg + 2 * ca * cb * cg  # (V / abc)^2
    if not (all(1 <= x <= 5000 for x in lengths) and all(0 < x < 180 for x in angles) and square > 1e-6):
        raise UserError(f"{text} is not a possible unit cell", parameter.name, "a,b,c in A and angles in degrees")
    return tuple(values)


# --------------------------------------------------------------------------------------------- files


def _with_suffix(path: Path, name: str, suffix: str) -> Path:
    """CCP4's default extensions: for outputs always, for the input where only that file exists."""
    if path.suffix or path.is_dir() or not path.name:
        return path
    full = path.with_name(path.name + suffix)
    if name in INPUTS:
        return full if full.exists() and not path.exists() else path
    return path if path.exists() and not path.is_file() else full


def _same(a: Path, b: Path) -> bool:
    """Whether two paths are one file, through links and case-blind file systems too."""
    try:
        return a.samefile(b)
    except OSError:
        return a.resolve() == b.resolve()


def check_files(options: Options) -> None:
    """Everything about the files that can be known before any work.

    Raises
    ------
    UserError
        an input missing or unreadable; starts that contradict each other; output in no folder, in one that cannot be
        written to, a folder itself,
        an input, another output, or there already without ``overwrite``
    """
    inputs = {p.name: getattr(options, p.name) for p in PARAMETERS if p.kind == "input"}
    inputs = {name: path for name, path in inputs.items() if path is not None}
    for name, path in inputs.items():
        _check_input(name, path)
    if options.labphase is not None and options.phasein is None:
        raise UserError("names columns of phasein, which is missing", "labphase", "phasein phases.mtz")
    _check_starts(options)
    check_seeds(options)
    seen: list[tuple[str, Path]] = []
    for name, path in _output_files(options):
        _check_output(name, path, overwrite=options.overwrite)
        special = path.exists() and not path.is_file()
        if not special and any(_same(path, given) for given in inputs.values()):
            raise UserError("would overwrite the input", f"{name} {path}", f"another name for {name}")
        for other, there in seen:
            if not special and _same(path, there):
                raise UserError(f"is the same file as {other}", f"{name} {path}", f"another name for {name}")
        seen.append((name, path))


def _check_starts(options: Options) -> None:
    """One thing to begin with, not two."""
    pieces = "starts fragments" if options.starts == "fragments" else ""
    pieces = pieces if options.xyzin is None else f"xyzin {options.xyzin}"
    if pieces and options.phasein is not None:
        raise UserError("phases and pieces cannot both be begun with", pieces, f"leave it or {options.phasein} out")
    if options.xyzin is not None and options.starts in ("random", "network"):
        raise UserError(f"nothing is placed with starts {options.starts}", pieces, "starts fragments")
    for name, path in (("phasein", options.phasein), ("seedin", options.seedin)):
        if path is not None and options.starts == "network":
            raise UserError(
                "predicted and given phases cannot both be begun with", "starts network", f"leave it or {name} out"
            )


def _output_files(options: Options) -> list[tuple[str, Path]]:
    """Parameter and path of every file to write; shelxout and seedout may stand for several."""
    named = [(p.name, getattr(options, p.name)) for p in PARAMETERS if p.kind == "output"]
    files = [(name, path) for name, path in named if path is not None]
    if options.shelxout is not None:
        from ml_phaser.exchange.shelxe import check_stem, companions

        check_stem(options.shelxout)
        files += [("shelxout", path) for path in companions(options.shelxout)[1:]]
    return [*files, *(("seedout", path) for path in seed_files(options)[1:])]


def check_next(options: Options) -> None:
    """What the program that is to go on needs, as far as it can be known before the data are read. Raises UserError."""
    if options.seqin is not None:
        from ml_phaser.exchange.sequence import read_sequence

        read_sequence(options.seqin)
    if options.then != "none":
        from ml_phaser.chain import check_program

        check_program(options)


def _check_input(name: str, path: Path) -> None:
    where = f"{name} {path}"
    if path.is_dir():
        raise UserError("is a folder", where, "the name of the data file in it")
    if not path.exists():
        folder = path.parent
        if not folder.is_dir():
            raise UserError("no such folder", f"{name} {folder}", "check the spelling")
        near = difflib.get_close_matches(path.name, [f.name for f in folder.iterdir()], n=1, cutoff=0.6)
        raise UserError("no such file", where, f"{name} {folder / near[0]}" if near else "check the spelling")
    if not os.access(path, os.R_OK):
        raise UserError("cannot be read (permission denied)", where, f"chmod u+r {path}")


def _check_output(name: str, path: Path, *, overwrite: bool) -> None:
    where = f"{name} {path}"
    if path.is_dir():
        raise UserError("is a folder", where, f"{name} {path / ('pred' + DEFAULT_SUFFIX[name])}")
    folder = path.resolve().parent
    if not folder.exists():
        raise UserError(f"folder {folder} does not exist", where, f"mkdir -p {folder}")
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder", where, "another folder")
    if path.exists() and not path.is_file():
        return  # a device or pipe, e.g. /dev/null
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"folder {folder} cannot be written to", where, "another folder")
    if path.exists() and not overwrite:
        raise UserError("exists already", where, f"the option overwrite to replace it, or another {name}")


# ----------------------------------------------------------------------------------------- all of it


def options_from(given: dict[str, str]) -> Options:
    """Options out of the texts of the parameters, defaults filled in; files not yet checked.

    Raises
    ------
    UserError
        a value that is not one, hklin or mapout missing
    """
    for name in ("hklin", "mapout"):
        if name not in given:
            usage = "ml_phaser hklin data.mtz mapout pred.map (ml_phaser --help explains)"
            raise UserError(f"{name} is missing", "command line", usage)
    values = {name: convert(BY_NAME[name], text) for name, text in given.items()}
    suffixes = DEFAULT_SUFFIX
    if "seedout" in values:
        suffixes = suffixes | {"seedout": usual_ending(values.get("seedformat", "auto"))}
    for name, value in values.items():
        if isinstance(value, Path):
            values[name] = _with_suffix(value, name, suffixes[name])
    values.setdefault("hklout", beside(values["mapout"], ".mtz"))
    values.setdefault("jsonout", beside(values["mapout"], ".json"))
    return Options(**values)


def understand(words: Sequence[str], stream: TextIO | None, commands: Sequence[str] = ()) -> Request:
    """Command line and standard input to a checked request.

    Standard input is read only after the command line has been understood, so that a typing error is answered
    at once. Raises UserError.
    """
    typed = parse_command_line(words, commands)
    raw, note = read_standard_input(stream)
    lines = list(keyword_lines(raw))
    keywords = parse_keywords(lines)
    notes = [note] if note else []
    notes += [f"{name}: the command line overrides the keyword" for name in keywords if name in typed]
    options = options_from({**keywords, **typed})
    check_files(options)
    check_next(options)
    records = {name: getattr(options, name) for name in RECORDS if name in typed or name in keywords}
    return Request(options, tuple(lines), tuple(notes), records)


# --------------------------------------------------------------------------------------------- help


def help_text(commands: dict[str, str]) -> str:
    """The answer to ``--help``; ``commands`` maps sub-command to a phrase."""
    lines = [
        "Electron density and phases from measured X-ray amplitudes.",
        "",
        "Usage:  ml_phaser hklin data.mtz mapout pred.map [name value ...]",
        "",
        "Names in any case, with or without --; the same names are keywords on standard input",
        "(LABIN, RESOLUTION, ..., END). What is in [ ] is the default.",
        "",
    ]
    for p in PARAMETERS:
        value = {"input": "FILE", "output": "FILE", "text": "TEXT", "int": "N", "float": "X", "flag": ""}.get(p.kind)
        if value is None:
            value = {"choice": "|".join(p.choices), "resolution": "LOW,HIGH", "cell": "A,B,C,AL,BE,GA"}[p.kind]
        unit = f" in {p.unit}" if p.unit else ""
        shown = f"{p.default:g}" if isinstance(p.default, float) else str(p.default)
        default = f" [{shown}]" if p.default is not None and p.kind != "flag" else ""
        lines.append(f"  {p.name + ' ' + value + ' ':<38}{p.help}{unit}{default}")
    lines += [
        "",
        "  -i                                    program and version, as CCP4 programs answer",
        "  --version, --help",
        "",
        "Other commands (ml_phaser COMMAND --help):",
        *(f"  {name:<38}{phrase}" for name, phrase in commands.items()),
        "",
        "Examples:",
        "  ml_phaser hklin data.mtz mapout pred.map",
        "  ml_phaser hklin data.mtz mapout pred.map labin F,SIGF resolution 20,1.2 timelimit 600",
        "  ml_phaser hklin data.mtz phasein mir.mtz labphase PHIB=PHI FOM=FOM mapout better.map",
        "  ml_phaser hklin small.hkl mapout small.map cell 7.1,9.2,11.3,90,98.5,90 spacegroup P21/c",
    ]
    return "\n".join(lines)
