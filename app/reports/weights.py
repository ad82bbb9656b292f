"""Whether the pair's weights are the same: what a verdict has to know of them."""

from typing import Literal

from app.artifacts import PREFIX
from app.reports.diagnosis import Diagnosis
from app.reports.schemas import Evaluation
from app.reports.verdict import Failure, Results

Weights = Literal["same", "only_unquantized", "different", "not_compared"]
"""Of original and unlearned, over all tensors; `only_unquantized`: no decoder linear differs, something else does."""


def compare(diagnosis: Diagnosis | Failure | None, results: Results) -> Weights:
    """What the diagnosis found, or the digests of the tensors that were evaluated: equal ones are the same weights."""
    pairs = [(results.get(("original", name)), results.get(("unlearned", name))) for name in _precisions(results)]
    if any(_same(original, unlearned) for original, unlearned in pairs):
        return "same"
    if not isinstance(diagnosis, Diagnosis):
        return "not_compared"
    if diagnosis.identical is None:
        # By an earlier version, which looked at decoder linears alone.
        return "different" if diagnosis.overall.changed else "not_compared"
    if diagnosis.identical:
        return "same"
    return "different" if diagnosis.overall.changed or diagnosis.overall.non_finite else "only_unquantized"


def _precisions(results: Results) -> set[str]:
    """Those at which the pair itself was evaluated, not an artifact of one of them."""
    return {precision for _, precision in results if not precision.startswith(PREFIX)}


def _same(original: object, unlearned: object) -> bool:
    if not isinstance(original, Evaluation) or not isinstance(unlearned, Evaluation):
        return False
    return original.checkpoint.tensors is not None and original.checkpoint.tensors == unlearned.checkpoint.tensors
