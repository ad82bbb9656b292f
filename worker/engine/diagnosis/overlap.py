"""Why forgetting fails, from weights alone: where a pair's update lives and what rounding does to it.

Per decoder linear and over all of them, for each precision: the share of weights whose code is the same in both models,
the quantiles of |theta_u - theta_o| / delta, the share of weights that changed, and the share of those that lie in the
quantizer's zero bucket (engine/README.md, "Why it comes back"). It explains and never judges: trials showed that it
does not predict recovery by itself. What no precision quantizes is also compared (`others.py`), value by value.

It streams: two slices of rows are in memory at a time, whatever the size of the model.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app import __version__
from app.catalog.precisions import PRECISIONS
from app.catalog.quantizers import BNB_BLOCK, Precision
from app.checkpoints.format.digests import identity
from app.checkpoints.format.files import CheckpointFiles, inspect
from app.checkpoints.pair import check_structure
from app.errors import InvalidRequest
from app.evidence.diagnosis import DEFAULT_DIAGNOSED, Diagnosis, ModulePart, Part, Rounding, check_diagnosable
from app.evidence.evaluation import CheckpointInfo
from worker.engine.diagnosis import others
from worker.engine.diagnosis.histogram import Histogram
from worker.engine.quantizers.codes import CODEBOOKS, book_codes, grouped, largest, rtn_codes
from worker.engine.stored import Linear, decoder_linears

SLICE = 2**18
"""Weights of a model in memory at a time; what is computed from them stays in a CPU's cache."""

Progress = Callable[[str, int, int], None]
"""stage, done, total"""
Grid = tuple[str | None, int | None]
"""What decides |theta_u - theta_o| / max|theta_o|: granularity and group size, or a codebook's name."""
Maxima = tuple[Tensor, Tensor] | None
"""max|w| of the whole tensors, original and unlearned, where a precision needs them."""


@dataclass
class _Tally:
    """Counts that add up: over slices to a module, over modules to the whole."""

    weights: int = 0
    changed: int = 0
    non_finite: int = 0
    different: bool = False
    """Whether any value differs; `changed` counts NaN and infinity as zeros."""
    update: float = 0.0
    """||theta_u - theta_o||^2"""
    size: float = 0.0
    """||theta_o||^2"""
    same: Counter[str] = field(default_factory=Counter)
    near_zero: Counter[str] = field(default_factory=Counter)
    steps: dict[Grid, Histogram] = field(default_factory=dict)

    def merge(self, other: "_Tally") -> None:
        self.weights += other.weights
        self.changed += other.changed
        self.non_finite += other.non_finite
        self.different |= other.different
        self.update += other.update
        self.size += other.size
        self.same += other.same
        self.near_zero += other.near_zero
        for grid, histogram in other.steps.items():
            self.steps.setdefault(grid, Histogram()).merge(histogram)


def diagnose(
    original: Path,
    unlearned: Path,
    precisions: Sequence[str] = DEFAULT_DIAGNOSED,
    progress: Progress | None = None,
    *,
    device: str = "cpu",
) -> Diagnosis:
    """Compare a pair's stored weights, tensor by tensor.

    Codes are those of the stored weights in float32, each model rounded with its own steps, as in evaluations on the
    CPU. Tensors count as the same if their values are, whatever their dtypes.

    Args:
        original, unlearned: Checkpoint directories; the same architecture and tensors.
        precisions: RTN precisions of `app.catalog.precisions`, `bnb-nf4`, `bnb-fp4`. One whose groups do not divide the
            columns is left out, with the reason.
        progress: Called with ("weights", slices done, slices in all); may raise to stop.
        device: Where to compute.

    Raises:
        CheckpointRefused: What `inspect` refuses, and weights that are not plain floats.
        InvalidRequest: `pair_mismatch` with the first differences; `unknown_precision`; `precision_unavailable` when
            none of the precisions is left.
    """
    wanted = [PRECISIONS[name] for name in check_diagnosable(precisions)]
    ours, theirs = inspect(original), inspect(unlearned)
    check_structure(ours, theirs)
    (linears, left_out), (counterparts, _) = decoder_linears(ours), decoder_linears(theirs)
    pairs = {name: (linear, counterparts[name]) for name, linear in linears.items()}
    skipped = _unfit({name: linear.shape for name, linear in linears.items()}, wanted)
    fit = [precision for precision in wanted if precision.name not in skipped]
    if not fit:
        raise InvalidRequest("precision_unavailable", "; ".join(f"{name}: {why}" for name, why in skipped.items()))
    rest = others.names(ours, theirs, linears)
    count = sum(1 for a, _ in pairs.values() for _ in _slices(a.shape, fit))
    step = _ticker(progress, count + sum(len(others.slices(ours, name, SLICE)) for name in rest))

    whole, modules = _Tally(), list[ModulePart]()
    for name, (a, b) in pairs.items():
        tally = _module(a, b, fit, step, torch.device(device))
        whole.merge(tally)
        modules.append(ModulePart(module=name, shape=list(a.shape), **_part(tally, fit)))
    unquantized = others.compare(ours, theirs, rest, SLICE, torch.device(device), step)
    # The relative update of an all-zero module is infinite.
    modules.sort(key=lambda part: (part.relative_update is not None, -(part.relative_update or 0), part.module))
    info = [_info(files) for files in (ours, theirs)]
    return Diagnosis(
        schema="lethe-diagnosis-1",
        lethe=__version__,
        original=info[0],
        unlearned=info[1],
        precisions=[precision.name for precision in fit],
        skipped=skipped,
        overall=Part(**_part(whole, fit)),
        modules=modules,
        left_out=left_out,
        others=unquantized,
        identical=not whole.different and not any(part.changed for part in unquantized),
    )


def _unfit(shapes: Mapping[str, tuple[int, int]], wanted: Sequence[Precision]) -> dict[str, str]:
    found: dict[str, str] = {}
    for precision in wanted:
        size = precision.group_size
        if size is None or precision.name in CODEBOOKS:
            continue
        unfit = next((name for name, (_, columns) in shapes.items() if columns % size), None)
        if unfit is not None:
            found[precision.name] = f"groups of {size} do not divide the {shapes[unfit][1]} columns of {unfit}"
    return found


def _info(files: CheckpointFiles) -> CheckpointInfo:
    found = identity(files)
    return CheckpointInfo(
        uri=str(files.path),
        digest=found.digest,
        tensors=found.tensors,
        architecture=files.architecture,
        parameters=files.parameters,
        dtype=files.dtype,
    )


def _ticker(progress: Progress | None, total: int) -> Callable[[], None]:
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress("weights", done, total)

    if progress is not None:
        progress("weights", 0, total)
    return tick


def _slices(shape: tuple[int, int], precisions: Sequence[Precision]) -> Iterator[tuple[int, int]]:
    """Row ranges of about SLICE weights, in whole codebook blocks; given twice where a whole tensor shares a step."""
    rows, columns = shape
    height = max(1, SLICE // max(1, columns))
    height += -height % BNB_BLOCK if columns % BNB_BLOCK else 0
    for _ in range(2 if _whole(precisions) else 1):
        for start in range(0, rows, height):
            yield start, min(rows, start + height)


def _whole(precisions: Sequence[Precision]) -> bool:
    return any(precision.granularity == "tensor" for precision in precisions)


def _module(
    a: Linear, b: Linear, precisions: Sequence[Precision], tick: Callable[[], None], device: torch.device
) -> _Tally:
    tally = _Tally()
    ranges = list(_slices(a.shape, precisions))
    maxima: Maxima = None
    if _whole(precisions):
        peaks: list[tuple[Tensor, Tensor]] = []
        for start, stop in ranges[: len(ranges) // 2]:
            o, u, *_ = _read(a, b, start, stop, device)
            peaks.append((largest(o.reshape(1, -1)), largest(u.reshape(1, -1))))
            tick()
        maxima = torch.cat([p for p, _ in peaks]).amax(0, True), torch.cat([p for _, p in peaks]).amax(0, True)
        ranges = ranges[len(ranges) // 2 :]
    for start, stop in ranges:
        _count(tally, *_read(a, b, start, stop, device), precisions, maxima)
        tick()
    return tally


def _read(a: Linear, b: Linear, start: int, stop: int, device: torch.device) -> tuple[Tensor, Tensor, int, bool]:
    """Both models' rows, with zeros for weights that are not finite in either; how many these are, and whether any of
    them differ."""
    o, u = (linear.read(start, stop).to(device) for linear in (a, b))
    if bool((o.sum() + u.sum()).isfinite()):
        return o, u, 0, False
    bad = ~(o.isfinite() & u.isfinite())
    differs = bool((bad & (o != u) & ~(o.isnan() & u.isnan())).any())
    o, u = (torch.where(w.isfinite(), w, 0) for w in (o, u))
    return o, u, int(bad.count_nonzero()), differs


def _count(
    tally: _Tally, o: Tensor, u: Tensor, bad: int, differs: bool, precisions: Sequence[Precision], maxima: Maxima
) -> None:
    distance = (u - o).abs_()
    changed = o != u
    count = int(changed.count_nonzero())
    tally.weights += o.numel()
    tally.changed += count
    tally.non_finite += bad
    tally.different |= differs or bool(count)
    tally.update += float(torch.linalg.vector_norm(distance)) ** 2
    tally.size += float(torch.linalg.vector_norm(o)) ** 2
    done: set[Grid] = set()
    for precision in precisions:
        steps = tally.steps.setdefault(_grid(precision), Histogram())
        if not count and (precision.granularity != "tensor" or _equal(maxima)):
            tally.same[precision.name] += o.numel()
            if _grid(precision) not in done:
                steps.add_zeros(o.numel())
        else:
            same, near_zero, ratio = _round(o, u, distance, precision, maxima)
            tally.same[precision.name] += int(same.count_nonzero())
            tally.near_zero[precision.name] += int((changed.view(-1) & near_zero).count_nonzero())
            if _grid(precision) not in done:
                steps.add(ratio())
        done.add(_grid(precision))


def _equal(maxima: Maxima) -> bool:
    return maxima is None or bool((maxima[0] == maxima[1]).all())


def _grid(precision: Precision) -> Grid:
    # RTN's bit widths differ by powers of two, which only scale a quantile: one histogram serves them all.
    return (precision.name, None) if precision.name in CODEBOOKS else (precision.granularity, precision.group_size)


def _scale(precision: Precision) -> float:
    return 1.0 if precision.name in CODEBOOKS else 2.0 ** ((precision.bits or 1) - 1)


def _round(
    o: Tensor, u: Tensor, distance: Tensor, precision: Precision, maxima: Maxima
) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
    """Per weight, flat: whether the codes agree, whether the original's is zero; and |theta_u - theta_o| / unit."""
    n = o.numel()
    originals, unlearneds = grouped(o, precision), grouped(u, precision)
    if precision.granularity == "tensor" and maxima is not None:
        ours, theirs = maxima
    else:
        ours, theirs = largest(originals), largest(unlearneds)
    if precision.name in CODEBOOKS:
        book = CODEBOOKS[precision.name]
        codes = book_codes(originals, ours, book)
        same = codes == book_codes(unlearneds, theirs, book)
        near_zero = (codes >= book.near_zero[0]) & (codes <= book.near_zero[1])
    else:
        codes = rtn_codes(originals, ours, precision.bits or 1)
        same, near_zero = codes == rtn_codes(unlearneds, theirs, precision.bits or 1), codes == 0

    def ratio() -> Tensor:
        unit = book.widths.to(o.device)[codes.long()] * ours if precision.name in CODEBOOKS else ours
        # 0 / 0 is a weight that stayed zero.
        return (grouped(distance, precision) / unit).nan_to_num_(0.0, posinf=float("inf")).view(-1)[:n]

    return same.view(-1)[:n], near_zero.view(-1)[:n], ratio


def _part(tally: _Tally, precisions: Sequence[Precision]) -> dict[str, Any]:
    """The fields of `Part`."""
    weights = max(1, tally.weights)
    relative = (tally.update / tally.size) ** 0.5 if tally.size else None if tally.update else 0.0
    return {
        "weights": tally.weights,
        "changed": tally.changed / weights,
        "update": tally.update**0.5,
        "relative_update": relative,
        "non_finite": tally.non_finite,
        "roundings": [
            Rounding(
                precision=precision.name,
                same_code=tally.same[precision.name] / weights,
                median_step=_quantile(tally, precision, 0.5),
                p99_step=_quantile(tally, precision, 0.99),
                zero_bucket=tally.near_zero[precision.name] / tally.changed if tally.changed else None,
            )
            for precision in precisions
        ],
    }


def _quantile(tally: _Tally, precision: Precision, q: float) -> float | None:
    found = tally.steps[_grid(precision)].quantile(q) * _scale(precision)
    return None if found == float("inf") else found
