"""A diagnosis for people: rows of text, and a section of Markdown."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from app.evidence.diagnosis import Diagnosis, OtherPart, Part
from app.judgement.figures import hundredfold

TOP = 15
"""Modules that are shown; the JSON has all."""
TITLE = "## Where the update lives"
ALL = "all decoder linears"

MEANING = (
    "*changed*: weights that differ at all. *same codes*: weights that round to the same code in both models, each "
    "with its own steps. *|Δ|/δ*: the update in steps of the quantizer, median and 99th percentile over all weights. "
    "*of zero bucket*: the share of the changed weights that round to zero. Largest relative update first."
)


class Row(NamedTuple):
    """A module, or all of them, at one precision; values that do not depend on it are only in its first row."""

    module: str
    relative_update: str
    changed: str
    precision: str
    same: str
    median: str
    p99: str
    zero: str


HEADER = Row(
    "module", "relative update", "changed", "precision", "same codes", "median |Δ|/δ", "p99 |Δ|/δ", "of zero bucket"
)


def rows(diagnosis: Diagnosis, top: int = TOP) -> list[Row]:
    """All decoder linears, the modules with the largest relative updates, and the unquantized tensors that changed."""
    found = _rows(ALL, diagnosis.overall)
    for module in diagnosis.modules[:top]:
        found += _rows(module.module, module)
    return found + [
        Row(part.name, _number(part.relative_update), _percent(part.changed), "(stays unquantized)", "", "", "", "")
        for part in _changed(diagnosis)[:top]
    ]


def headline(diagnosis: Diagnosis) -> str:
    """How much moved, where most of it is, and which unquantized tensors changed."""
    if diagnosis.identical:
        return "The two models have the same weights: every tensor holds the same values in both."
    matrices = [part for part in _changed(diagnosis) if part.changed_rows is not None]
    vectors = [part.name for part in _changed(diagnosis) if part.changed_rows is None]
    found = [_headline(diagnosis)]
    found += [
        f"{part.name} changed too: {_share(part.changed_rows or 0)} of its rows, by {_number(part.relative_update)} of "
        f"its norm; one row by {_number(part.largest_row_update)} of its own."
        for part in matrices
    ]
    if vectors:
        found.append(f"{len(vectors)} norms and biases changed too ({_some(vectors)}).")
    return " ".join(found)


def _headline(diagnosis: Diagnosis) -> str:
    overall, leading = diagnosis.overall, _leading(diagnosis)
    if not overall.changed:
        return "No weight of a decoder linear differs between the two models."
    moved = f"{_percent(overall.changed)} of the weights moved, by {_number(overall.relative_update)} of their norm"
    return f"{moved}; half of it lies in {len(leading)} of {len(diagnosis.modules)} modules ({_some(leading)})."


def below(diagnosis: Diagnosis, top: int = TOP) -> str:
    """What the table does not show; empty when it shows everything."""
    hidden = max(0, len(diagnosis.modules) - top) + max(0, len(_changed(diagnosis)) - top)
    lines = [f"{hidden} further modules are in the JSON."] if hidden > 0 else []
    lines += [f"{name} was left out: {why}." for name, why in diagnosis.skipped.items()]
    if diagnosis.overall.non_finite:
        lines.append(f"{diagnosis.overall.non_finite:,} weights are not finite and were counted as zeros.")
    lines.append(_unquantized(diagnosis))
    return " ".join(lines)


def _unquantized(diagnosis: Diagnosis) -> str:
    """What stays unquantized, and whether it is the same in both models."""
    if diagnosis.identical is None:
        return f"Not quantized, not compared: {', '.join(diagnosis.left_out) or 'nothing'}."
    same = ", ".join(part.name for part in diagnosis.others if not part.changed)
    changed = ", ".join(part.name for part in _changed(diagnosis))
    lines = [f"Not quantized, and the same in both models: {same or 'nothing'}; changed: {changed or 'nothing'}."]
    compared = {part.name for part in diagnosis.others}
    tied = [name for name in diagnosis.left_out if name not in compared and name != "norms and biases"]
    lines += [f"{name} is tied to the embedding and only one model saved it: not compared." for name in tied]
    return " ".join(lines)


def _changed(diagnosis: Diagnosis) -> list[OtherPart]:
    return [part for part in diagnosis.others if part.changed]


def markdown(
    diagnosis: Diagnosis, table: Callable[[Sequence[str], Sequence[Sequence[object]]], str], top: int = TOP
) -> str:
    """The section of a report, or of a separate document; `table` writes a Markdown table."""
    parts = (
        f"{TITLE}\n\n{headline(diagnosis)}\n",
        table(HEADER, rows(diagnosis, top)),
        f"{MEANING} {below(diagnosis, top)}\n",
        f"{diagnosis.note}\n",
    )
    return "\n".join(parts)


def _rows(name: str, part: Part) -> list[Row]:
    return [
        Row(
            name if first else "",
            _number(part.relative_update) if first else "",
            _percent(part.changed) if first else "",
            rounding.precision,
            _percent(rounding.same_code),
            _number(rounding.median_step),
            _number(rounding.p99_step),
            "–" if rounding.zero_bucket is None else _percent(rounding.zero_bucket),
        )
        for first, rounding in zip([True] + [False] * len(part.roundings), part.roundings, strict=False)
    ]


def _leading(diagnosis: Diagnosis) -> list[str]:
    """The fewest modules that hold half of ||unlearned - original||^2."""
    found: list[str] = []
    missing = diagnosis.overall.update**2 / 2
    for module in sorted(diagnosis.modules, key=lambda m: -m.update):
        if missing <= 0:
            break
        found.append(module.module)
        missing -= module.update**2
    return found


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _percent(share: float) -> str:
    text = hundredfold(share, 1)
    if text == "100.0" and share < 1:
        text = ">99.9"
    elif text == "0.0" and share > 0:
        text = "<0.1"
    return f"{text} %"


def _share(share: float) -> str:
    """A share that may be small: a single row of an output layer can silence a token."""
    return f"{100 * share:.2g} %" if share < 0.1 else _percent(share)


def _number(value: float | None) -> str:
    return "∞" if value is None else "0" if value == 0 else f"{value:.3g}"
