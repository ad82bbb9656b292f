"""What to check before believing the verdict, whatever the verdict is."""

import math
from collections.abc import Iterator

from pydantic import Field

from app.catalog.frozen import Frozen
from app.catalog.metrics import METRIC_NAMES, METRICS, MetricId
from app.evidence.evaluation import Evaluation, GenerationScores, PrivLeakScores, Role
from app.judgement.verdict import FULL, Judgement, Results
from app.judgement.weights import Weights

TOLERANCE = 1e-3
"""Nats per token: how much the order of summation may change a text's statistic."""


class Alarm(Frozen):
    """Something that should not be so."""

    code: str = Field(examples=["scores_of_same_weights_differ"])
    sentence: str


def alarms(results: Results, weights: Weights) -> Iterator[Alarm]:
    """The alarms that the evidence gives."""
    yield from _differences(results)
    original, unlearned = results.get(("original", FULL)), results.get(("unlearned", FULL))
    if weights != "same" or not isinstance(original, Evaluation) or not isinstance(unlearned, Evaluation):
        return
    found = {metric: items for metric in METRICS if (items := _differing(original, unlearned, metric))}
    if found:
        said = ", ".join(f"{METRIC_NAMES[metric]} at {count} of {of} items" for metric, (count, of) in found.items())
        yield Alarm(
            code="scores_of_same_weights_differ",
            sentence=f"The pair's weights are the same, yet in full precision their scores differ: {said}. Something "
            "other than the weights caused that; compare the checkpoints' config, generation config and tokenizer, and "
            "what ran the two evaluations.",
        )


def disagreements(judgement: Judgement) -> Iterator[Alarm]:
    """Evidence against what the metrics show; said once for all precisions where it is the same."""
    found: dict[tuple[str, str], list[str]] = {}
    for reason in judgement.disagreements:
        found.setdefault((reason.code, reason.sentence), []).append(reason.precision)
    for (code, sentence), precisions in found.items():
        yield Alarm(code=code, sentence=f"{', '.join(precisions)}: {sentence}")


def _differences(results: Results) -> Iterator[Alarm]:
    """Differences that the policy allows are reported all the same: they take effect when the model is deployed."""
    found: dict[Role, dict[str, str]] = {}
    for (role, _), result in results.items():
        if isinstance(result, Evaluation):
            found.setdefault(role, {}).update(result.differences)
    for role, differences in found.items():
        if differences:
            said = "; ".join(f"{field} ({how})" for field, how in differences.items())
            yield Alarm(
                code="configs_differ",
                sentence=f"The {role} checkpoint's config or tokenizer differs from the original's: {said}. Its own "
                "tokenizer, end tokens, window and attention were not used: deployed with them it may act differently.",
            )


def _differing(original: Evaluation, unlearned: Evaluation, metric: MetricId) -> tuple[int, int] | None:
    """(items whose scores differ, items); None where none differs or the metric was not measured in both."""
    ours, theirs = original.scores(metric), unlearned.scores(metric)
    if isinstance(ours, GenerationScores) and isinstance(theirs, GenerationScores):
        pairs, tolerance = list(zip(ours.scores, theirs.scores, strict=False)), 1e-9
    elif isinstance(ours, PrivLeakScores) and isinstance(theirs, PrivLeakScores):
        both = (ours.forget.loss + ours.holdout.loss, theirs.forget.loss + theirs.holdout.loss)
        pairs, tolerance = list(zip(*both, strict=False)), TOLERANCE
    else:
        return None
    count = sum(not math.isclose(a, b, rel_tol=0, abs_tol=tolerance) for a, b in pairs)
    return (count, len(pairs)) if count else None
