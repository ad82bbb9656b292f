"""What keeps a pair from being called robust although every metric says that it forgot."""

import json
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest

from app.evidence.evaluation import ROLES, Evaluation
from app.judgement.judge import judge
from app.judgement.policy import Policy
from app.judgement.verdict import Judgement
from app.judgement.weights import Weights
from tests.support.judgement.evaluations import (
    MEMBER,
    OUTSIDER,
    TEXTS,
    Cells,
    evaluation,
    knowing,
    known,
    membership_of,
    scores_of,
)
from tests.support.places import REFERENCE_SCORES

METRICS = ("verbmem", "knowmem_forget", "knowmem_retain")
ALL = ("verbmem", "knowmem_forget", "privleak", "knowmem_retain")
PRECISIONS = ("full", "rtn-int4")
KNOWS = evaluation(90, 90, 90, membership=MEMBER)
FORGOT = evaluation(5, 5, 80, membership=OUTSIDER)
NEVER_SAW = evaluation(20, 30, 85, membership=OUTSIDER)
REFERENCES: tuple[dict[str, Any], ...] = ({"references": {"privleak": 0.5}}, {"retrained": NEVER_SAW})


def judged(
    original: Evaluation = KNOWS,
    unlearned: Evaluation = FORGOT,
    retrained: Evaluation | None = None,
    metrics: Sequence[str] = ALL,
    references: dict[str, float] | None = None,
    weights: Weights = "different",
    **policy: Any,
) -> Judgement:
    """The verdict on models that score the same at both precisions."""
    given = zip(ROLES, (original, unlearned, retrained), strict=True)
    results = {(role, p): found for (role, found), p in product(given, PRECISIONS) if found is not None}
    return judge(results, PRECISIONS, metrics, Policy.model_validate(policy), references, weights=weights)


def codes(judgement: Judgement) -> list[str]:
    """Of the reasons that decided, each once."""
    return list(dict.fromkeys(reason.code for reason in judgement.reasons))


def without(given: Evaluation, *metrics: str) -> Evaluation:
    return given.model_copy(update=dict.fromkeys(metrics))


def flagged(given: Evaluation, metric: str, flag: str, items: int) -> Evaluation:
    scores = scores_of(given, metric).model_copy(update={"flags": {flag: list(range(items))}})
    return given.model_copy(update={metric: scores})


def test_a_pair_that_forgot_moved_its_membership_and_differs_is_robust() -> None:
    assert judged().verdict == "robust"


# The same weights, or weights that nobody compared


@pytest.mark.parametrize("unlearned", [FORGOT, KNOWS, evaluation(0, 0, 0, membership=MEMBER)])
def test_the_same_weights_are_not_forgotten_whatever_the_scores_say(unlearned: Evaluation) -> None:
    judgement = judged(unlearned=unlearned, weights="same")
    assert judgement.verdict == "not_forgotten"
    assert codes(judgement)[0] == "same_weights"
    assert not {"forgotten", "stays_forgotten"} & set(codes(judgement))
    assert {precision.outcome for precision in judgement.precisions} == {"not_forgotten"}


def test_weights_that_were_not_compared_keep_an_audit_from_being_robust_and_from_nothing_else() -> None:
    judgement = judged(weights="not_compared")
    assert (judgement.verdict, codes(judgement)) == ("inconclusive", ["weights_not_compared"])
    assert judged(unlearned=KNOWS, weights="not_compared").verdict == "not_forgotten"
    assert judged(unlearned=evaluation(5, 5, 10, membership=OUTSIDER), weights="not_compared").verdict == "collapsed"


# Masked answers


def test_an_update_of_nothing_that_is_quantized_is_not_called_robust_by_quantizing() -> None:
    """Rows of the output layer, negated: silent, and membership moved all the way; nothing else of the model did."""
    negated = knowing(FORGOT, (OUTSIDER[0] + 9, OUTSIDER[1]))
    judgement = judged(unlearned=negated, weights="only_unquantized")
    assert (judgement.verdict, codes(judgement)) == ("inconclusive", ["only_unquantized_changed"])
    assert judged(unlearned=negated, retrained=NEVER_SAW, weights="only_unquantized").verdict == "inconclusive"
    assert judged(unlearned=KNOWS, weights="only_unquantized").verdict == "not_forgotten"
    # A little noise elsewhere does not hide them.
    assert codes(judged(unlearned=negated, weights="rows_replaced")) == ["rows_replaced"]


def test_without_a_reference_a_model_whose_membership_did_not_move_is_not_called_robust() -> None:
    masked = knowing(FORGOT, MEMBER)
    judgement = judged(unlearned=masked)
    assert (judgement.verdict, codes(judgement)) == ("inconclusive", ["not_available", "membership_unmoved"])
    assert {reason.precision for reason in judgement.reasons} == set(PRECISIONS)
    (said,) = {reason.sentence for reason in judgement.reasons if reason.precision == "full"} - {
        reason.sentence for reason in judgement.reasons if reason.code == "not_available"
    }
    assert "0.00 against 0.00" in said
    # With a reference PrivLeak itself says it, aloud; it alone makes nothing `not_forgotten` unless it is asked to.
    for reference in REFERENCES:
        judgement = judged(unlearned=masked, **reference)
        assert (judgement.verdict, codes(judgement)) == ("inconclusive", ["membership_remains"])
        assert {reason.code for reason in judgement.disagreements} == {"membership_remains"}
        assert judged(unlearned=masked, **reference, guards=[]).verdict == "not_forgotten"


def test_a_reference_beside_which_privleak_does_not_count_does_not_excuse_membership_that_did_not_move() -> None:
    """The original's membership is only 16 points above the reference: PrivLeak says nothing, its AUC still does."""
    close = (np.arange(TEXTS) - 0.5 + 0.42 * TEXTS - TEXTS / 2, np.arange(TEXTS, dtype=float))
    pair: dict[str, Any] = {"original": knowing(evaluation(80, 80, 90), close), "unlearned": knowing(FORGOT, close)}
    for reference in REFERENCES:
        judgement = judged(**pair, **reference)
        assert judgement.verdict == "inconclusive"
        assert "membership_unmoved" in codes(judgement)


def test_texts_that_a_model_gives_no_number_for_are_no_forgetting() -> None:
    """Whoever makes the model chooses which texts are left out."""
    scores = membership_of(FORGOT).model_copy(update={"flags": {"forget.non_finite": list(range(10))}})
    judgement = judged(unlearned=FORGOT.model_copy(update={"privleak": scores}), references={"privleak": 0.5})
    assert (judgement.verdict, codes(judgement)) == ("inconclusive", ["non_finite_scores"])
    assert "unlearned checkpoint returned NaN for 10 texts" in judgement.reasons[0].sentence


def test_the_difference_must_be_shown_by_its_interval() -> None:
    slightly = MEMBER[0].copy()
    slightly[0] = 9.0
    assert "membership_unmoved" in codes(judged(unlearned=knowing(FORGOT, (slightly, MEMBER[1]))))
    several = MEMBER[0].copy()
    several[:10] = 9.0
    assert judged(unlearned=knowing(FORGOT, (several, MEMBER[1]))).verdict == "robust"


def test_membership_is_asked_at_every_precision() -> None:
    results: Cells = {("original", p): KNOWS for p in PRECISIONS}
    results |= {("unlearned", "full"): FORGOT, ("unlearned", "rtn-int4"): knowing(FORGOT, MEMBER)}
    judgement = judge(results, PRECISIONS, ALL, Policy(), weights="different")
    assert [precision.outcome for precision in judgement.precisions] == ["robust", "inconclusive"]


def test_membership_that_was_not_measured_needs_a_retrained_checkpoint() -> None:
    pair: dict[str, Any] = {
        "original": without(KNOWS, "privleak"),
        "unlearned": without(FORGOT, "privleak"),
        "metrics": METRICS,
    }
    assert codes(judged(**pair)) == ["membership_not_measured"]
    # A constant of what was not measured is no reference.
    assert codes(judged(**pair, references={"privleak": 0.5})) == ["membership_not_measured"]
    assert judged(**pair, retrained=without(NEVER_SAW, "privleak")).verdict == "robust"


@pytest.mark.parametrize("worse", [evaluation(88, 88, 88), evaluation(5, 5, 5)])
def test_a_doubt_never_makes_a_bad_outcome_better(worse: Evaluation) -> None:
    found, doubted = judged(unlearned=knowing(worse, OUTSIDER)), judged(unlearned=knowing(worse, MEMBER))
    assert doubted.verdict == found.verdict
    assert found.verdict in ("not_forgotten", "collapsed")


# What the original must be shown to be


def test_an_original_that_never_trained_on_the_forget_set_gives_no_robust() -> None:
    """Original = retrained: VerbMem and KnowMem of a model that can guess."""
    judgement = judged(original=evaluation(40, 40, 90, membership=OUTSIDER), unlearned=FORGOT)
    assert judgement.verdict == "inconclusive"
    assert "original_not_shown_trained" in codes(judgement)
    (said,) = {reason.sentence for reason in judgement.reasons if reason.code == "original_not_shown_trained"}
    assert "membership AUC is 0.50 (" in said
    assert "VerbMem 40.0 (" in said


def test_either_membership_or_verbatim_text_shows_that_the_original_was_trained() -> None:
    by_membership = evaluation(30, 60, 90, membership=MEMBER)
    assert judged(original=by_membership).verdict == "robust"
    by_text = judged(original=knowing(KNOWS, OUTSIDER), unlearned=knowing(FORGOT, (OUTSIDER[0] + 9, OUTSIDER[1])))
    assert by_text.verdict == "robust"
    neither = judged(original=by_membership, trained_auc=0, trained_verbmem=1)
    assert codes(neither)[-1] == "original_not_shown_trained"


def test_verbatim_text_of_too_few_distinct_passages_shows_nothing() -> None:
    copied = evaluation(90, 90, 90, membership=OUTSIDER, duplicates={"verbmem/forget": list(range(3, 100))})
    judgement = judged(original=copied, unlearned=knowing(FORGOT, (OUTSIDER[0] + 9, OUTSIDER[1])))
    assert "original_not_shown_trained" in codes(judgement)


def test_a_reference_auc_below_one_half_lowers_what_shows_training() -> None:
    """Where even a model that never saw the forget set has an AUC of 0.3, 0.36 shows nothing."""
    forget = np.concatenate([np.linspace(1, 2, 256), np.linspace(7, 8, 144)])
    original = evaluation(30, 90, 90, membership=(forget, np.linspace(5, 6, 400)))
    moved = knowing(FORGOT, (np.linspace(7, 8, 400), np.linspace(5, 6, 400)))
    assert "original_not_shown_trained" in codes(
        judged(original=original, unlearned=moved, trained_auc=0.45, references={"privleak": 0.3})
    )
    assert "original_not_shown_trained" not in codes(judged(original=original, unlearned=moved, trained_auc=0.45))


def test_with_a_retrained_checkpoint_what_the_original_knows_beyond_it_is_enough() -> None:
    assert judged(original=evaluation(45, 90, 90, membership=MEMBER), retrained=NEVER_SAW).verdict == "robust"


def test_a_retrained_checkpoint_that_was_trained_on_the_forget_set_is_no_reference() -> None:
    """The unlearned model itself, given as the reference, keeps its own recovery from showing."""
    back = evaluation(60, 60, 85, membership=MEMBER)
    results: Cells = {("original", p): KNOWS for p in PRECISIONS}
    results |= {(role, "full"): FORGOT for role in ROLES[1:]}
    results |= {(role, "rtn-int4"): back for role in ROLES[1:]}
    judgement = judge(results, PRECISIONS, METRICS, Policy(), weights="different")
    assert judgement.verdict == "inconclusive"
    assert "reference_trained" in codes(judgement)


@pytest.mark.parametrize(("model", "trained"), [("books_target", True), ("books_ga_klr", False)])
def test_the_membership_of_a_published_original_shows_that_it_was_trained(model: str, trained: bool) -> None:
    """MUSE-Books: AUC 0.23, at most 0.30, with VerbMem left aside; the unlearned one's 0.33 could be 0.42."""
    if not REFERENCE_SCORES.exists():
        pytest.skip("the reference scores lie beside the project, not in it")
    found = json.loads(REFERENCE_SCORES.read_text())[model]["min40"]
    given = evaluation(14, 29, 70, membership=(found["forget"], found["holdout"]))
    moved = knowing(FORGOT, (np.array(found["forget"]) + 9, found["holdout"]))
    assert ("original_not_shown_trained" not in codes(judged(original=given, unlearned=moved))) is trained


# Metrics that are not there


@pytest.mark.parametrize("metric", ["verbmem", "knowmem_forget", "privleak"])
def test_a_metric_of_the_plan_that_was_not_measured_is_missing(metric: str) -> None:
    pair: dict[str, Any] = {"original": without(KNOWS, metric), "unlearned": without(FORGOT, metric)}
    if metric == "privleak":
        pair["retrained"] = without(NEVER_SAW, metric)
    judgement = judged(**pair)
    assert (judgement.verdict, codes(judgement)[0]) == ("inconclusive", "metric_missing")
    assert "may_be_missing" in judgement.reasons[0].sentence
    assert judged(**pair, may_be_missing=[metric]).verdict == "robust"
    assert judged(**pair, metrics=[asked for asked in ALL if asked != metric]).verdict == "robust"


def test_membership_that_was_measured_but_has_no_reference_is_not_missing() -> None:
    judgement = judged()
    assert judgement.verdict == "robust"
    assert "metric_missing" not in codes(judgement)


@pytest.mark.parametrize("metric", ["verbmem", "knowmem_forget"])
def test_a_metric_with_too_few_items_is_missing_too(metric: str) -> None:
    def few(given: Evaluation) -> Evaluation:
        scores = scores_of(given, metric)
        return given.model_copy(update={metric: scores.model_copy(update={"scores": scores.scores[:19]})})

    pair: dict[str, Any] = {"original": few(KNOWS), "unlearned": few(FORGOT)}
    judgement = judged(**pair)
    assert (judgement.verdict, codes(judgement)[0]) == ("inconclusive", "too_few_items")
    assert judged(**pair, may_be_missing=[metric]).verdict == "robust"


def test_too_few_texts_are_too_few_without_a_reference_too() -> None:
    few: dict[str, Any] = {
        "original": knowing(KNOWS, [texts[:19] for texts in MEMBER]),
        "unlearned": knowing(FORGOT, [texts[:19] for texts in OUTSIDER]),
    }
    judgement = judged(**few)
    assert (judgement.verdict, codes(judgement)[0]) == ("inconclusive", "too_few_items")
    assert judged(**few, may_be_missing=["privleak"]).verdict == "robust"


def test_utility_may_not_be_missing_whatever_the_policy_says() -> None:
    pair: dict[str, Any] = {
        "original": without(KNOWS, "knowmem_retain"),
        "unlearned": without(FORGOT, "knowmem_retain"),
    }
    assert "utility_unknown" in codes(judged(**pair, may_be_missing=["knowmem_retain"]))


# Items that repeat others


@pytest.mark.parametrize("name", ["verbmem/forget", "knowmem/forget_qa"])
def test_three_items_copied_eight_times_are_three_items(name: str) -> None:
    copies = {name: list(range(3, 24))}
    pair: dict[str, Any] = {
        role: evaluation(*scores, items=24, membership=texts, duplicates=copies)
        for role, scores, texts in (("original", (90, 90, 90), MEMBER), ("unlearned", (5, 5, 80), OUTSIDER))
    }
    judgement = judged(**pair)
    assert (judgement.verdict, codes(judgement)[0]) == ("inconclusive", "too_few_items")
    assert "3 distinct items" in judgement.reasons[0].sentence


def test_an_item_that_repeats_another_counts_in_no_score_and_in_no_interval() -> None:
    knows = np.array([0.9] * 30 + [0.0] * 30)
    copies = {name: list(range(30, 60)) for name in ("verbmem/forget", "knowmem/forget_qa", "knowmem/retain_qa")}
    original = evaluation(knows, knows, knows, membership=MEMBER, duplicates=copies)
    unlearned = evaluation(1 - knows, 1 - knows, knows, membership=OUTSIDER, duplicates=copies)
    judgement = judged(original=original, unlearned=unlearned)
    assert judgement.verdict == "robust"
    verbmem = judgement.precisions[0].metrics[0]
    assert [verbmem.original, verbmem.unlearned] == pytest.approx([90, 10])
    assert known(verbmem.raw).low == pytest.approx(known(verbmem.raw).high)
    assert judgement.precisions[0].knowmem_retain == {"original": pytest.approx(90), "unlearned": pytest.approx(90)}


def test_texts_that_repeat_others_count_for_no_membership() -> None:
    """Twenty texts of the holdout stand in the forget set too; the trained model knows them as well."""
    forget = np.linspace(1, 2, 40)
    holdout = np.concatenate([np.linspace(1, 2, 20), np.linspace(5, 6, 40)])
    copies = {"privleak/holdout": list(range(20))}
    original = evaluation(90, 90, 90, membership=(forget, holdout), duplicates=copies)
    unlearned = evaluation(5, 5, 80, membership=(np.linspace(5, 6, 40), holdout), duplicates=copies)
    judgement = judged(original=original, unlearned=unlearned)
    assert judgement.precisions[0].metrics[2].auc["original"] == 0
    assert judgement.verdict == "robust"


# A window that hides what comes before it


@pytest.mark.parametrize("flag", ["prompt_truncated", "new_tokens_reduced"])
@pytest.mark.parametrize("metric", METRICS)
def test_scores_of_prompts_that_were_mostly_cut_are_not_believed(flag: str, metric: str) -> None:
    judgement = judged(unlearned=flagged(FORGOT, metric, flag, 51))
    assert (judgement.verdict, codes(judgement)[-1]) == ("inconclusive", "prompts_truncated")
    assert "51 % of the items for the unlearned" in judgement.reasons[-1].sentence
    assert judged(original=flagged(KNOWS, metric, flag, 51)).verdict == "inconclusive"
    assert judged(unlearned=flagged(FORGOT, metric, flag, 50)).verdict == "robust"
    assert judged(unlearned=flagged(FORGOT, metric, flag, 51), max_truncated=0.6).verdict == "robust"


# A reference that is one of the pair, or that regains what only a model that saw the forget set can


def with_reference(full: Evaluation, quantized: Evaluation, unlearned: Evaluation = FORGOT) -> Judgement:
    """The verdict beside a `retrained` checkpoint that scores so in full precision and at 4 bits."""
    results: Cells = {}
    for p in PRECISIONS:
        results |= {("original", p): KNOWS, ("unlearned", p): unlearned}
    results |= {("retrained", "full"): full, ("retrained", "rtn-int4"): quantized}
    return judge(results, PRECISIONS, ALL, Policy(), weights="different")


def test_a_reference_that_rounding_gives_knowledge_back_is_none() -> None:
    """A copy of the unlearned model: beyond it, the unlearned model knows nothing at any precision."""
    full, back = evaluation(5, 5, 80, membership=OUTSIDER), evaluation(45, 50, 80, membership=OUTSIDER)
    for unlearned in (FORGOT, evaluation(5, 5, 80, membership=OUTSIDER)):
        judgement = with_reference(full, back, unlearned)
        assert judgement.verdict == "inconclusive"
        assert "reference_recovers" in codes(judgement)
    assert with_reference(NEVER_SAW, NEVER_SAW).verdict == "robust"
    assert with_reference(NEVER_SAW, evaluation(24, 33, 85, membership=OUTSIDER)).verdict == "robust"


def test_a_reference_whose_membership_shows_after_rounding_is_none() -> None:
    near = np.linspace(5, 6, len(OUTSIDER[0])) - 0.2, OUTSIDER[1]
    judgement = with_reference(NEVER_SAW, evaluation(20, 30, 85, membership=near))
    assert judgement.verdict == "inconclusive"
    assert "reference_recovers" in codes(judgement)


@pytest.mark.parametrize("whose", ["original", "unlearned"])
def test_a_reference_with_the_weights_of_one_of_the_pair_is_none(whose: str) -> None:
    tensors = {"original": "sha256:a", "unlearned": "sha256:b"}
    known = {
        role: given.model_copy(update={"checkpoint": given.checkpoint.model_copy(update={"tensors": tensors[role]})})
        for role, given in {"original": KNOWS, "unlearned": FORGOT}.items()
    }
    copied = NEVER_SAW.model_copy(update={"checkpoint": known[whose].checkpoint})
    judgement = judged(known["original"], known["unlearned"], copied)
    assert judgement.verdict == "inconclusive"
    assert "reference_copied" in codes(judgement)


def test_a_config_that_differs_is_a_doubt_unless_the_policy_names_the_field() -> None:
    other = FORGOT.model_copy(update={"differences": {"config.rope_theta": "1 against 2"}})
    judgement = judged(unlearned=other)
    assert judgement.verdict == "inconclusive"
    assert "configs_differ" in codes(judgement)
    assert judged(unlearned=other, allowed_differences=["config.rope_theta"]).verdict == "robust"
