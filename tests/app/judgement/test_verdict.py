"""The verdict against models made to fit each outcome."""

import numpy as np
import pytest

from app.judgement.policy import Policy
from app.judgement.verdict import Failure, Judgement
from tests.support.judgement.evaluations import PAIR, Cells, evaluation, known, membership_of, scores_of
from tests.support.judgement.judgements import METRICS, at, audit_of, codes, judge, metric


def test_a_model_that_never_forgot_is_not_called_robust() -> None:
    """The LoRA paper's NEWS rows: nothing was forgotten in the first place."""
    same: Cells = {(role, p): evaluation(58.4, 63.9, 55.2) for role in PAIR for p in ("full", "rtn-int4")}
    assert judge(same, ["full", "rtn-int4"], METRICS, Policy()).verdict == "not_forgotten"


def test_forgotten_and_staying_forgotten_is_robust() -> None:
    assert audit_of(evaluation(10, 10, 80), evaluation(12, 12, 80)).verdict == "robust"


def test_a_model_that_breaks_only_when_quantized_collapsed_there() -> None:
    judgement = audit_of(evaluation(10, 10, 80), evaluation(0, 0, 10))
    assert judgement.verdict == "collapsed"
    assert codes(judgement) == {"utility_lost"}


def test_too_few_items_are_inconclusive() -> None:
    few: Cells = {
        (role, p): evaluation(v, v, 80, items=19)
        for role, v in zip(PAIR, (90, 10), strict=True)
        for p in ("full", "rtn-int4")
    }
    judgement = judge(few, ["full", "rtn-int4"], METRICS, Policy())
    assert judgement.verdict == "inconclusive"
    assert "too_few_items" in codes(judgement)


def test_an_original_that_does_not_know_the_forget_set_is_inconclusive() -> None:
    judgement = audit_of(evaluation(1, 1, 80), evaluation(1, 1, 80), original=(10, 10, 90))
    assert judgement.verdict == "inconclusive"
    assert "original_does_not_know" in codes(judgement)


def test_a_precision_that_breaks_the_original_is_inconclusive() -> None:
    results: Cells = {
        ("original", "full"): evaluation(90, 90, 90),
        ("original", "rtn-int2"): evaluation(0, 0, 5),
        ("unlearned", "full"): evaluation(10, 10, 80),
        ("unlearned", "rtn-int2"): evaluation(0, 0, 5),
    }
    judgement = judge(results, ["full", "rtn-int2"], METRICS, Policy())
    assert judgement.verdict == "inconclusive"
    assert "quantized_original_collapsed" in codes(judgement, "rtn-int2")


def test_a_failed_evaluation_is_inconclusive_and_says_why() -> None:
    judgement = audit_of(evaluation(10, 10, 80), Failure(code="not_quantized", detail="no proof"))
    assert judgement.verdict == "inconclusive"
    assert codes(judgement) == {"not_quantized"}
    assert at(judgement, "full").outcome == "robust"


def test_a_recovery_is_found_even_where_another_precision_failed() -> None:
    results: Cells = {
        ("original", "full"): evaluation(90, 90, 90),
        ("original", "rtn-int4"): evaluation(90, 90, 90),
        ("original", "bnb-nf4"): Failure(code="engine_error", detail="x"),
        ("unlearned", "full"): evaluation(10, 10, 80),
        ("unlearned", "rtn-int4"): evaluation(80, 80, 80),
        ("unlearned", "bnb-nf4"): evaluation(80, 80, 80),
    }
    judgement = judge(results, ["full", "rtn-int4", "bnb-nf4"], METRICS, Policy())
    assert judgement.verdict == "recovered"
    assert {r.precision for r in judgement.reasons} == {"rtn-int4"}


def test_an_interval_across_the_margin_is_inconclusive() -> None:
    noisy = np.array([0.0] * 16 + [0.9] * 4)
    results: Cells = {
        ("original", "full"): evaluation(90, 90, 90, items=20),
        ("original", "rtn-int4"): evaluation(90, 90, 90, items=20),
        ("unlearned", "full"): evaluation(5, 5, 80, items=20),
        ("unlearned", "rtn-int4"): evaluation(noisy, 5, 80, items=20),
    }
    judgement = judge(results, ["full", "rtn-int4"], METRICS, Policy())
    assert judgement.verdict == "inconclusive"
    assert codes(judgement) == {"recovery_not_excluded"}
    (reason,) = judgement.reasons
    assert "own knowledge changed by +14.4 (" in reason.sentence
    assert "about 68 items like these would decide it" in reason.sentence


def test_without_retain_questions_a_silent_model_is_not_called_robust() -> None:
    results: Cells = {
        (role, p): evaluation(v, v) for role, v in zip(PAIR, (90, 5), strict=True) for p in ("full", "rtn-int4")
    }
    judgement = judge(results, ["full", "rtn-int4"], METRICS, Policy())
    assert judgement.verdict == "inconclusive"
    assert "utility_unknown" in codes(judgement)


def test_the_worst_metric_decides() -> None:
    judgement = audit_of(evaluation(10, 10, 80), evaluation(10, 70, 80))
    assert judgement.verdict == "recovered"
    assert [r.metric for r in judgement.reasons] == ["knowmem_forget"]


def test_a_retrained_checkpoint_moves_the_judgement_from_raw_to_excess() -> None:
    results: Cells = {}
    for p in ("full", "rtn-int4"):
        results["original", p] = evaluation(90, 90, 90)
        results["retrained", p] = evaluation(45, 45, 90)
        results["unlearned", p] = evaluation(60, 60, 90)
    with_reference = judge(results, ["full", "rtn-int4"], METRICS, Policy())
    assert with_reference.verdict == "robust"
    assert known(metric(with_reference, "full", "verbmem").excess).value == pytest.approx(1 / 3)
    without = {k: v for k, v in results.items() if k[0] != "retrained"}
    assert judge(without, ["full", "rtn-int4"], METRICS, Policy()).verdict == "not_forgotten"


def test_privleak_counts_only_with_a_reference_and_never_assumes_one_half() -> None:
    rng = np.random.default_rng(0)
    member, outsider = rng.normal(1, 0.1, 40), rng.normal(5, 0.1, 40)
    results: Cells = {}
    for p in ("full", "rtn-int4"):
        results["original", p] = evaluation(90, 90, 90, membership=(member, outsider))
        leaks = member if p == "rtn-int4" else outsider
        results["unlearned", p] = evaluation(5, 5, 80, membership=(leaks, outsider + rng.normal(0, 0.1, 40)))
    metrics = (*METRICS, "privleak")
    without = judge(results, ["full", "rtn-int4"], metrics, Policy())
    assert (at(without, "full").outcome, without.verdict) == ("robust", "inconclusive")
    assert "membership_unmoved" in codes(without)
    assert metric(without, "full", "privleak").outcome is None
    assert metric(without, "full", "privleak").auc["original"] == 0.0
    with_constant = judge(results, ["full", "rtn-int4"], metrics, Policy(), {"privleak": 0.4772})
    assert with_constant.verdict == "recovered"
    assert metric(with_constant, "rtn-int4", "privleak").original == -100.0


def test_the_same_policy_has_the_same_digest_and_another_has_another() -> None:
    assert Policy().digest() == Policy().digest() != Policy(recovery_margin=0.2).digest()


def membership_audit(flags: dict[str, list[int]], items: int = 40) -> Judgement:
    rng = np.random.default_rng(0)
    member, outsider = rng.normal(1, 0.1, items), rng.normal(5, 0.1, items)
    results: Cells = {}
    for p in ("full", "rtn-int4"):
        results["original", p] = evaluation(90, 90, 90, membership=(member, outsider))
        quiet = evaluation(5, 5, 80, membership=(outsider, outsider + rng.normal(0, 0.1, items)))
        scores = membership_of(quiet).model_copy(update={"flags": flags if p == "rtn-int4" else {}})
        results["unlearned", p] = quiet.model_copy(update={"privleak": scores})
    metrics = (*METRICS, "privleak")
    return judge(results, ["full", "rtn-int4"], metrics, Policy(), {"privleak": 0.4772})


def test_texts_without_a_statistic_count_in_no_model() -> None:
    judgement = membership_audit({"forget.too_short": [0, 1], "holdout.too_short": [3]})
    assert judgement.verdict == "robust"
    assert metric(judgement, "rtn-int4", "privleak").outcome == "robust"
    broken = membership_audit({"forget.non_finite": [0, 1]})
    assert (broken.verdict, metric(broken, "rtn-int4", "privleak").outcome) == ("inconclusive", "robust")


def test_privleak_does_not_count_when_too_few_texts_have_a_statistic() -> None:
    judgement = membership_audit({"forget.non_finite": list(range(30))})
    assert metric(judgement, "rtn-int4", "privleak").outcome is None
    assert "too_few_items" in codes(judgement)
    assert judgement.verdict == "inconclusive"


def test_a_model_that_gave_numbers_for_no_text_is_judged_by_the_other_metrics_and_never_robust() -> None:
    judgement = membership_audit({"forget.non_finite": list(range(40))})
    assert metric(judgement, "rtn-int4", "privleak").outcome is None
    assert metric(judgement, "rtn-int4", "verbmem").outcome == "robust"
    assert judgement.verdict == "inconclusive"


def test_a_plan_that_quantizes_nothing_is_never_robust() -> None:
    results: Cells = {("original", "full"): evaluation(90, 90, 90), ("unlearned", "full"): evaluation(5, 5, 80)}
    judgement = judge(results, ["full"], METRICS, Policy())
    assert judgement.verdict == "inconclusive"
    assert [r.code for r in judgement.reasons] == ["nothing_quantized"]


def test_zeros_of_items_without_a_number_do_not_count_as_forgetting() -> None:
    half = np.array([0.0] * 50 + [0.05] * 50)
    broken = evaluation(half, 5, 80)
    scores = scores_of(broken, "verbmem").model_copy(update={"flags": {"non_finite": list(range(50))}})
    judgement = audit_of(evaluation(5, 5, 80), broken.model_copy(update={"verbmem": scores}))
    assert judgement.verdict == "inconclusive"
    assert "non_finite_scores" in codes(judgement)


def test_a_model_that_still_knows_and_is_broken_has_not_forgotten() -> None:
    assert audit_of(evaluation(88, 88, 30), evaluation(88, 88, 30)).verdict == "not_forgotten"


def test_knowledge_that_comes_back_outranks_utility_that_is_lost_with_it() -> None:
    judgement = audit_of(evaluation(5, 5, 80), evaluation(88, 88, 30))
    assert judgement.verdict == "recovered"
    assert "utility_lost" in codes(judgement)


def test_an_evaluation_that_failed_in_full_precision_is_told_once() -> None:
    results: Cells = {
        ("original", "full"): evaluation(90, 90, 90),
        ("unlearned", "full"): Failure(code="engine_error", detail="x"),
    }
    judgement = judge(results, ["full"], METRICS, Policy())
    assert [r.code for r in judgement.reasons] == ["engine_error"]
