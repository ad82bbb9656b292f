"""Whether the pair's weights differ, and where, as far as a verdict needs it."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from app.evidence.artifacts import PREFIX
from app.evidence.diagnosis import Diagnosis
from app.evidence.evaluation import Evaluation
from app.judgement.policy import Policy
from app.judgement.verdict import Failure, Results

Weights = Literal["same", "not_compared", "only_unquantized", "rows_replaced", "different"]
"""Original against unlearned, over all tensors. `only_unquantized`: no decoder linear differs, something else does;
`rows_replaced`: rows of an embedding or output layer moved by more than the policy's `max_row_update`."""


class Doubt(NamedTuple):
    """The reason why an audit of such weights is not robust."""

    code: str
    sentence: str


DOUBTS: Mapping[Weights, Doubt] = {
    "not_compared": Doubt(
        "weights_not_compared",
        "The weights of the pair were not compared, so it is not known whether anything was unlearned; the diagnosis, "
        "if there is one, says why.",
    ),
    "only_unquantized": Doubt(
        "only_unquantized_changed",
        "No weight of a decoder linear differs between the two models, only what no precision quantizes (embeddings, "
        "lm_head, norms, biases). So quantizing tested nothing, and answers can be masked there without anything being "
        "forgotten. The diagnosis says what changed.",
    ),
    "rows_replaced": Doubt(
        "rows_replaced",
        "Single rows of an embedding or of the output layer moved further than the policy's max_row_update. That "
        "silences tokens at every precision without anything being forgotten. The diagnosis names the tensors.",
    ),
}


def compare(diagnosis: Diagnosis | Failure | None, results: Results, policy: Policy) -> Weights:
    """By the digests of the tensors that were evaluated (equal: the same weights), then by the diagnosis."""
    pairs = [(results.get(("original", name)), results.get(("unlearned", name))) for name in _precisions(results)]
    if any(_same(original, unlearned) for original, unlearned in pairs):
        return "same"
    if not isinstance(diagnosis, Diagnosis):
        return "not_compared"
    if diagnosis.identical is None:
        # From an earlier version, which compared decoder linears only.
        return "different" if diagnosis.overall.changed else "not_compared"
    if diagnosis.identical:
        return "same"
    if not diagnosis.overall.changed and not diagnosis.overall.non_finite:
        return "only_unquantized"
    rows = [part.largest_row_update for part in diagnosis.others if part.changed and part.changed_rows is not None]
    return "rows_replaced" if any(row is None or row > policy.max_row_update for row in rows) else "different"


def _precisions(results: Results) -> set[str]:
    """The precisions at which the pair itself was evaluated, not an artifact of one of the two."""
    return {precision for _, precision in results if not precision.startswith(PREFIX)}


def _same(original: object, unlearned: object) -> bool:
    if not isinstance(original, Evaluation) or not isinstance(unlearned, Evaluation):
        return False
    return original.checkpoint.tensors is not None and original.checkpoint.tensors == unlearned.checkpoint.tensors
