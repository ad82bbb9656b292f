"""Reading the files of a bundle: which names are allowed, and JSON or JSONL as items with their line numbers.

MUSE's own download script (load_data.py of github.com/swj0419/muse_bench) writes more than Lethe reads, and raw
documents twice, as .json and .txt: these are known by name and ignored. Any other name is refused, as it may be a
misspelling of one that counts. Every refusal names the file, the line and the field, so that a thousand-item file can
be repaired without guessing.
"""

import json
import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from app.errors import FieldProblem, ForgetSetRefused

SETS: Mapping[str, tuple[str, ...]] = {
    "knowmem/forget_qa": ("question", "answer"),
    "knowmem/forget_qa_icl": ("question", "answer"),
    "knowmem/retain_qa": ("question", "answer"),
    "knowmem/retain_qa_icl": ("question", "answer"),
    "verbmem/forget": ("prompt", "gt"),
    "privleak/forget": ("text",),
    "privleak/holdout": ("text",),
    "privleak/retain": ("text",),
    "raw/forget": ("text",),
    "raw/retain": ("text",),
}
"""MUSE's layout: name without suffix -> the fields of an item. Items with the one field `text` may be plain strings."""

ALIASES: Mapping[str, str] = {
    "raw/retain1": "raw/retain",
    "knowmem/retain2_qa": "knowmem/retain_qa",
    "knowmem/retain2_qa_icl": "knowmem/retain_qa_icl",
    "privleak/retain2": "privleak/retain",
}
"""MUSE's name -> ours, which takes precedence where both exist.

`raw/retain1` is what MUSE's unlearning scripts train on as retain data. Its first edition had the other three under
these names, and the data sets still hold them beside ours.
"""

UNUSED = frozenset(
    ["raw/retain2", "raw/holdout"]
    + [f"{kind}/forget_{fold}" for kind in ("scal", "sust") for fold in range(1, 5)]
    + [f"train/{split}" for split in ("forget", "retain1", "retain2")]
)
"""What MUSE's folders hold but Lethe does not read.

`raw/retain2` is what the questions on retain and privleak/retain were taken from, so nothing may be trained on it;
`raw/holdout` was never seen by any model; `scal` and `sust` are the forget sets of larger and of successive requests
(NEWS only); `train` is what the original was trained on.
"""

CONSTANTS = "bundle.json"
ACCEPTED = [f"{name}.json" for name in SETS] + [CONSTANTS]
_SUFFIXES = (".json", ".jsonl")
_TEXT = ".txt"
_KNOWN = {*SETS, *ALIASES, *UNUSED}
_TOP = {name.split("/")[0] for name in _KNOWN}
_SPACE = re.compile(r"[ \t\r\n]*")


class Item(NamedTuple):
    """One item of a file, with its 1-based line."""

    line: int
    value: Any


def refused(
    code: str, detail: str, *, file: str | None = None, line: int | None = None, field: str | None = None
) -> ForgetSetRefused:
    """A refusal that names the place in its sentence and in its `errors`."""
    place = " ".join(
        part for part in (file, f"line {line}" if line else None, f"field {field!r}" if field else None) if part
    )
    problem = FieldProblem(file=file, line=line, field=field, message=detail)
    return ForgetSetRefused(code, f"{place}: {detail}" if place else detail, errors=[problem] if place else None)


class File(NamedTuple):
    """A file of a bundle."""

    name: str
    """In our layout, `raw/retain.json`."""
    shown: str
    """As it was given, without the folders around the bundle: `raw/retain1.json`."""


class Arranged(NamedTuple):
    """The files of a bundle by the names under which they were given, and those that are not read."""

    files: dict[str, File]
    ignored: dict[str, str]
    """Name as given -> without the folders around the bundle."""


def arrange(names: list[str]) -> Arranged:
    """What each of these files is in a bundle.

    Folders around the whole bundle are stripped. READMEs, licences and dotfiles are left out. Ignored are `UNUSED`,
    files that are also there under our own name (`ALIASES`), and a .txt beside the .json with the same content.

    Raises:
        ForgetSetRefused: `forget_set_unknown_file` for any other name, `forget_set_malformed` for a set given twice.
    """
    found = Arranged({}, {})
    given = _relative(names)
    sets = {relative.rpartition(".")[0] for relative in given.values()}
    seen: dict[str, str] = {}
    for name, relative in given.items():
        stem, dot, suffix = relative.rpartition(".")
        ours = ALIASES.get(stem, stem)
        if _is_unused(stem, dot + suffix, sets, set(given.values())):
            found.ignored[name] = relative
            continue
        texts = (*_SUFFIXES, _TEXT) if stem.startswith("raw/") else _SUFFIXES
        if relative != CONSTANTS and (ours not in SETS or dot + suffix not in texts):
            raise refused(
                "forget_set_unknown_file",
                f"is not part of a MUSE bundle; accepted are {', '.join(ACCEPTED)}, also as .jsonl; raw/ also as .txt",
                file=relative,
            )
        if ours in seen:
            raise refused("forget_set_malformed", f"was given twice, also as {seen[ours]}; keep one", file=relative)
        seen[ours] = relative
        found.files[name] = File(ours + dot + suffix, relative)
    return found


def _relative(names: list[str]) -> dict[str, str]:
    """Name -> path in the bundle, in the order given, without READMEs, licences and dotfiles."""
    parts = {name: PurePosixPath(name.replace("\\", "/")).parts for name in names}
    parts = {name: tuple(p for p in path if p != "/") for name, path in parts.items() if path and not _is_noise(path)}
    while parts and len({path[0] for path in parts.values()}) == 1:
        if any(len(path) == 1 or path[0] in _TOP for path in parts.values()):
            break
        parts = {name: path[1:] for name, path in parts.items()}
    return {name: "/".join(path) for name, path in sorted(parts.items())}


def _is_unused(stem: str, suffix: str, sets: AbstractSet[str], given: AbstractSet[str]) -> bool:
    if suffix == _TEXT and stem in _KNOWN and any(stem + other in given for other in _SUFFIXES):
        return True
    if suffix not in (*_SUFFIXES, _TEXT):
        return False
    return stem in UNUSED or (stem in ALIASES and ALIASES[stem] in sets)


def _is_noise(path: tuple[str, ...]) -> bool:
    last = path[-1].upper()
    return (
        any((part.startswith(".") and part not in {".", ".."}) or part == "__MACOSX" for part in path)
        or last.startswith(("README", "LICENSE", "LICENCE"))
        or last.endswith(".MD")
    )


def decode(file: str, content: bytes) -> str:
    """The file's text; a byte-order mark is tolerated.

    Raises:
        ForgetSetRefused: `forget_set_not_utf8`, with the line of the first byte that isn't.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refused(
            "forget_set_not_utf8",
            f"byte 0x{content[error.start]:02x} at offset {error.start} is not UTF-8; save the file as UTF-8",
            file=file,
            line=content.count(b"\n", 0, error.start) + 1,
        ) from error


def read_items(file: str, content: bytes) -> list[Item]:
    """The items of a `.json` list, a `.jsonl` file, or a `.txt` file (one item, the whole text).

    Raises:
        ForgetSetRefused: `forget_set_malformed` or `forget_set_not_utf8`.
    """
    text = decode(file, content)
    if file.endswith(".txt"):
        return [Item(1, text)]
    return list(_lines(file, text) if file.endswith(".jsonl") else _array(file, text))


def read_object(file: str, content: bytes) -> dict[str, Any]:
    """The JSON object in a file (`bundle.json`)."""
    text = decode(file, content)
    start = _skip(text, 0)
    value, end = _value(file, text, start, 1 + text.count("\n", 0, start))
    if _skip(text, end) != len(text) or not isinstance(value, dict):
        raise refused("forget_set_malformed", "is not one JSON object", file=file, line=1)
    return value


def _lines(file: str, text: str) -> Iterator[Item]:
    # Not splitlines(): JSON strings may hold U+2028 and its like unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        start = _skip(line, 0)
        if start == len(line):
            continue
        value, end = _value(file, line, start, number)
        if _skip(line, end) != len(line):
            raise refused("forget_set_malformed", "holds more than one JSON value", file=file, line=number)
        yield Item(number, value)


def _array(file: str, text: str) -> Iterator[Item]:
    at = _skip(text, 0)
    line = 1 + text.count("\n", 0, at)
    if text[at : at + 1] != "[":
        raise refused("forget_set_malformed", "is not a JSON list; one object per line is .jsonl", file=file, line=line)

    def advance(to: int) -> int:
        nonlocal at, line
        line += text.count("\n", at, to)
        at = to
        return at

    if text[advance(_skip(text, at + 1)) : at + 1] == "]":
        advance(at + 1)
    else:
        while True:
            value, end = _value(file, text, at, line)
            yield Item(line, value)
            separator = text[advance(_skip(text, end)) : at + 1]
            if separator not in {",", "]"}:
                raise refused("forget_set_malformed", "is not JSON: expected ',' or ']'", file=file, line=line)
            advance(at + 1)
            if separator == "]":
                break
            advance(_skip(text, at))
    if advance(_skip(text, at)) != len(text):
        raise refused("forget_set_malformed", "has more content after the end of its JSON list", file=file, line=line)


def _value(file: str, text: str, at: int, line: int) -> tuple[Any, int]:
    """One JSON value and where it ends; `line` is the line of `at`."""
    try:
        value, end = json.JSONDecoder().raw_decode(text, at)
    except json.JSONDecodeError as error:
        wrong = line + text.count("\n", at, error.pos)
        raise refused("forget_set_malformed", f"is not JSON: {error.msg}", file=file, line=wrong) from error
    except (ValueError, RecursionError) as error:
        raise refused("forget_set_malformed", f"is not usable JSON: {error}", file=file, line=line) from error
    return value, end


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
