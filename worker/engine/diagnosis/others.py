"""What no precision quantizes, compared: embeddings, the output layer, norms and biases.

An update that lives there survives every precision of a plan, and can mask what a model knows instead of removing it
(rows of the output layer set to zero silence words).
"""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from app.checkpoints.format.files import BUFFERS, CheckpointFiles
from app.evidence.diagnosis import OtherPart
from worker.engine.stored import DTYPES, chunks, rows

UNCHANGED = "norms and biases"
_TYPICAL = 0.25
"""A row's norm counts as at least this share of the root mean square of all rows' norms: some are never trained."""


@dataclass
class _Tally:
    parameters: int = 0
    rows: int = 0
    changed: int = 0
    changed_rows: int = 0
    non_finite: int = 0
    updates: list[Tensor] = field(default_factory=list)
    """||theta_u - theta_o||^2 of each row, in runs"""
    sizes: list[Tensor] = field(default_factory=list)
    """||theta_o||^2 of each row, in runs"""

    def count(self, o: Tensor, u: Tensor) -> None:
        differs = ~((o == u) | (o.isnan() & u.isnan()))
        finite = o.isfinite() & u.isfinite()
        self.parameters += o.numel()
        self.rows += len(o)
        self.changed += int(differs.count_nonzero())
        self.changed_rows += int(differs.any(dim=1).count_nonzero())
        self.non_finite += int((~finite).count_nonzero())
        self.updates.append(torch.where(finite, u - o, 0).double().square().sum(dim=1))
        self.sizes.append(torch.where(finite, o, 0).double().square().sum(dim=1))

    def part(self, name: str, *, vector: bool) -> OtherPart:
        updates, sizes = (torch.cat([torch.zeros(1), *runs]) for runs in (self.updates, self.sizes))
        update, size = float(updates.sum()), float(sizes.sum())
        relative = (update / size) ** 0.5 if size else None if update else 0.0
        norms = sizes.clamp(min=_TYPICAL**2 * size / max(1, self.rows))
        return OtherPart(
            name=name,
            parameters=self.parameters,
            changed=self.changed / max(1, self.parameters),
            changed_rows=None if vector else self.changed_rows / max(1, self.rows),
            largest_row_update=None if vector or not size else float((updates / norms).max()) ** 0.5,
            update=update**0.5,
            relative_update=relative,
            non_finite=self.non_finite,
        )


def names(ours: CheckpointFiles, theirs: CheckpointFiles, modules: Collection[str]) -> list[str]:
    """The tensors that both have and that are neither the weight of one of `modules` nor recomputed buffers."""
    weights = {f"{module}.weight" for module in modules}
    return [name for name in ours.tensors if name in theirs.tensors.keys() - weights and not name.endswith(BUFFERS)]


def slices(files: CheckpointFiles, name: str, size: int) -> list[tuple[int, int]]:
    """Ranges of a tensor's rows, of about `size` values."""
    count, columns = rows(files, name).shape
    height = max(1, size // max(1, columns))
    return [(start, min(count, start + height)) for start in range(0, count, height)]


def compare(
    ours: CheckpointFiles,
    theirs: CheckpointFiles,
    found: Collection[str],
    size: int,
    device: torch.device,
    tick: Callable[[], None],
) -> list[OtherPart]:
    """The tensors of these names: changed ones first, the largest relative update first.

    Args:
        size: Values of a model in memory at a time.
        tick: Called after each of a tensor's `slices`.
    """
    parts: list[OtherPart] = []
    unchanged = _Tally()
    for name in found:
        tally = _Tally()
        for o, u in _pairs(ours, theirs, name, size):
            tally.count(o.to(device), u.to(device))
            tick()
        vector = len(ours.tensors[name].shape) < 2
        if vector and not tally.changed:
            unchanged.parameters += tally.parameters
            unchanged.non_finite += tally.non_finite
        else:
            parts.append(tally.part(name.removesuffix(".weight"), vector=vector))
    if unchanged.parameters:
        parts.append(unchanged.part(UNCHANGED, vector=True))
    return sorted(parts, key=_order)


def _order(part: OtherPart) -> tuple[bool, float, str]:
    # The relative update of an all-zero tensor is infinite.
    return not part.changed, -(math.inf if part.relative_update is None else part.relative_update), part.name


def _pairs(ours: CheckpointFiles, theirs: CheckpointFiles, name: str, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    both = (ours, theirs)
    if all(files.tensors[name].dtype in DTYPES for files in both):
        a, b = (rows(files, name) for files in both)
        for start, stop in slices(ours, name, size):
            yield a.read(start, stop), b.read(start, stop)
        return
    # Integers and 8-bit floats, which are rare and small.
    o, u = (
        torch.cat([run.reshape(-1, rows(files, name).shape[1]).double() for run in chunks(files, name)])
        for files in both
    )
    for start, stop in slices(ours, name, size):
        yield o[start:stop], u[start:stop]
