"""What rules out `robust` at a precision although every metric supports it (see README.md).

None of this makes a bad outcome better: it is checked only where the outcome would be `robust` (or already is
`inconclusive`, so that everything that needs repair is reported at once).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from app.catalog.metrics import METRIC_NAMES, MetricId
from app.evidence.evaluation import Evaluation, Role
from app.judgement.figures import hundredfold, interval, whole_percent
from app.judgement.policy import Policy
from app.judgement.statistics.intervals import Statistic, estimate
from app.judgement.statistics.retention import Evaluations, knowledge, mean, membership, numberless, truncated
from app.judgement.verdict import Reason


def doubts(
    here: Evaluations,
    full: Evaluations,
    metrics: Sequence[MetricId],
    policy: Policy,
    references: Mapping[MetricId, float],
    precision: str,
    counted: Collection[MetricId],
) -> Iterator[Reason]:
    """The doubts at one precision, whose evaluations are `here`.

    Args:
        full: The evaluations in full precision.
        metrics: The plan's.
        references: As for `judge`.
        counted: The metrics that count here, and so were judged.
    """
    found = [_training(here, full, policy, references), _membership(here, policy, precision, counted)]
    if found[0] is None:
        found += [_copied(here), *(_regained(here, full, metric, policy, references) for metric in metrics)]
    found += [_numberless(role, evaluation) for role, evaluation in here.items()]
    found += [_window(here, metric, policy) for metric in metrics]
    found += [_differences(role, evaluation, policy) for role, evaluation in here.items()]
    for doubt in found:
        if doubt is not None:
            yield Reason(code=doubt.code, sentence=doubt.sentence, precision=precision, metric=doubt.metric)


class _Doubt(NamedTuple):
    code: str
    sentence: str
    metric: MetricId | None = None


class _Trained(NamedTuple):
    """Whether scores show that a model was trained on the forget set, and the sentence that describes them."""

    shown: bool
    scores: str


def _training(
    here: Evaluations, full: Evaluations, policy: Policy, references: Mapping[MetricId, float]
) -> _Doubt | None:
    """An original that never knew the forget set has nothing to forget; a `retrained` one must not have seen it."""
    if "retrained" not in full:
        original = _trained(full["original"], policy, references)
        if original.shown:
            return None
        return _Doubt(
            "original_not_shown_trained",
            f"Nothing shows that the original was trained on the forget set: in full precision {original.scores}. It "
            "cannot forget what it never knew. A retrained checkpoint would show what it knows beyond a model that "
            "never saw the forget set.",
        )
    for evaluation in (full["retrained"], here.get("retrained", full["retrained"])):
        reference = _trained(evaluation, policy, {})
        if reference.shown:
            return _Doubt(
                "reference_trained",
                f"The retrained checkpoint is not a valid reference: at {evaluation.precision.name} its scores "
                f"are those of a model that was trained on the forget set: {reference.scores}.",
            )
    return None


def _copied(here: Evaluations) -> _Doubt | None:
    """A reference with the weights of one of the pair says nothing about what lies beyond it."""
    reference = here.get("retrained")
    pair: tuple[Role, Role] = ("original", "unlearned")
    same = [role for role in pair if reference and reference.checkpoint.tensors == here[role].checkpoint.tensors]
    if not reference or not same or reference.checkpoint.tensors is None:
        return None
    return _Doubt(
        "reference_copied", f"The retrained checkpoint is not a valid reference: it has the {same[0]} model's weights."
    )


def _regained(
    here: Evaluations, full: Evaluations, metric: MetricId, policy: Policy, references: Mapping[MetricId, float]
) -> _Doubt | None:
    """Rounding cannot bring back what a model never saw; a disguised copy of the unlearned model regains knowledge."""
    if "retrained" not in here or "retrained" not in full:
        return None
    before, now = full["retrained"], here["retrained"]
    shown: list[Statistic | None]
    if metric == "privleak":
        told = [membership({"original": one}, {"original": other}) for one, other in ((before, now), (now, before))]
        shown = [None if found is None else found["original"].times(-1) for found in told]
    else:
        shown = [mean(before, metric, now), mean(now, metric, before)]
    if metric == "knowmem_retain" or shown[0] is None or shown[1] is None:
        return None
    gain = estimate(shown[1].minus(shown[0]), policy.confidence)
    scale = knowledge(full, metric, references)
    margin = policy.recovery_margin * (min(1.0, scale.gap.value) if scale is not None and scale.gap.value > 0 else 1.0)
    if gain is None or gain.low is None or gain.low <= margin:
        return None
    return _Doubt(
        "reference_recovers",
        f"The retrained checkpoint is not a valid reference: its {METRIC_NAMES[metric]} shows more at "
        f"{here['retrained'].precision.name} than in full precision, by {interval(gain, 100, 1)} points. A model that "
        "never saw the forget set has nothing that rounding could bring back.",
        metric,
    )


def _trained(evaluation: Evaluation, policy: Policy, references: Mapping[MetricId, float]) -> _Trained:
    limit = policy.trained_auc * min(1.0, 2 * references.get("privleak", 0.5))
    told = membership({"original": evaluation})
    recalled = mean(evaluation, "verbmem")
    auc = estimate(told["original"], policy.confidence) if told else None
    verbmem = estimate(recalled, policy.confidence) if recalled else None
    by_auc = told and auc and told["original"].items >= policy.min_items and auc.high is not None and auc.high < limit
    by_text = (
        recalled
        and verbmem
        and recalled.items >= policy.min_items
        and verbmem.low is not None
        and verbmem.low > policy.trained_verbmem
    )
    scores = (
        f"its membership AUC is {interval(auc, 1, 2)} (trained: all of it below {limit:.2f})",
        f"its VerbMem {interval(verbmem, 100, 1)} (trained: all of it above {hundredfold(policy.trained_verbmem)})",
    )
    return _Trained(bool(by_auc or by_text), " and ".join(scores))


def _numberless(role: Role, evaluation: Evaluation) -> _Doubt | None:
    """Texts for which a model returned NaN are left out, so whoever makes the model could choose which ones count."""
    flags = {} if evaluation.membership is None else evaluation.membership.flags
    texts = sum(len(items) for flag, items in flags.items() if flag.endswith(".non_finite"))
    sampled = numberless({role: evaluation}, "verbmem_sampled").get(role, 0)
    if not texts and not sampled:
        return None
    metric: MetricId = "privleak" if texts else "verbmem_sampled"
    left_out = f"{texts} texts, which are left out" if texts else f"{sampled} items, which were scored 0"
    return _Doubt(
        "non_finite_scores",
        f"{METRIC_NAMES[metric]}: the {role} checkpoint returned NaN for {left_out}; that is not forgetting.",
        metric,
    )


def _membership(here: Evaluations, policy: Policy, precision: str, counted: Collection[MetricId]) -> _Doubt | None:
    """A model whose answers were masked still knows the texts, and its likelihoods show it."""
    if "privleak" in counted:
        return None
    pair: tuple[Role, Role] = ("original", "unlearned")
    found = membership({role: here[role] for role in pair})
    if found is None or not found["original"].items:
        if "retrained" in here:
            return None
        return _Doubt(
            "membership_not_measured",
            "Membership was not measured and there is no retrained checkpoint, so a model that forgot cannot be "
            "distinguished from one whose answers were masked. Give privleak/forget and privleak/holdout, or a "
            "retrained checkpoint.",
            "privleak",
        )
    moved = estimate(found["unlearned"].minus(found["original"]), policy.confidence)
    if moved is not None and moved.low is not None and moved.low > 0:
        return None
    original, unlearned = (found[role].value for role in pair)
    return _Doubt(
        "membership_unmoved",
        f"The unlearned model's membership AUC is not above the original's at {precision}: {unlearned:.2f} against "
        f"{original:.2f}, a difference of {interval(moved, 1, 2)}. So a model that forgot cannot be distinguished "
        "from one whose answers were masked. A reference for PrivLeak would help: a retrained checkpoint, or "
        "auc_retrained in the forget set's bundle.json.",
        "privleak",
    )


def _window(here: Evaluations, metric: MetricId, policy: Policy) -> _Doubt | None:
    """A smaller window hides the text before it."""
    pair: tuple[Role, Role] = ("original", "unlearned")
    cut = {role: share for role in pair if (share := truncated(here[role], metric)) > policy.max_truncated}
    if not cut:
        return None
    said = " and ".join(f"{whole_percent(share)} of the items for the {role}" for role, share in cut.items())
    return _Doubt(
        "prompts_truncated",
        f"{METRIC_NAMES[metric]}: prompts or continuations were cut to fit the model's window, {said}; the policy "
        f"allows {whole_percent(policy.max_truncated)}. Such scores are not the metric's.",
        metric,
    )


def _differences(role: Role, evaluation: Evaluation, policy: Policy) -> _Doubt | None:
    """A difference between the configs could hide what the model knows, here or where it is deployed."""
    refused = {field: how for field, how in evaluation.differences.items() if field not in policy.allowed_differences}
    if not refused:
        return None
    said = "; ".join(f"{field} ({how})" for field, how in refused.items())
    return _Doubt(
        "configs_differ",
        f"The {role} checkpoint's config or tokenizer differs from the original's: {said}. Copy the file from the "
        "original, or name the field in the policy's allowed_differences.",
    )
