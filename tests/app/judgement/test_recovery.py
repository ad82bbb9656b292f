"""What counts as knowledge that came back, as knowledge that stayed, and what an audit could have missed."""

import numpy as np
import numpy.typing as npt
import pytest

from app.judgement.policy import Policy
from tests.support.judgement.evaluations import MEMBER, OUTSIDER, PAIR, Cells, evaluation, known, scores_of
from tests.support.judgement.judgements import METRICS, at, audit_of, codes, judge, metric


def test_the_deployed_model_decides() -> None:
    """Broken in full precision: what quantizing brings back, knowledge or utility or both, is judged where it is."""
    broken = evaluation(5, 5, 10)
    both = audit_of(broken, evaluation(88, 88, 88))
    assert [precision.outcome for precision in both.precisions] == ["collapsed", "recovered"]
    assert both.verdict == "recovered"
    useful_only = audit_of(broken, evaluation(5, 5, 88))
    assert [precision.outcome for precision in useful_only.precisions] == ["collapsed", "robust"]
    assert useful_only.verdict == "collapsed"
    assert "broken_in_full_precision" in codes(useful_only)
    knowing_only = audit_of(broken, evaluation(88, 88, 10))
    assert [precision.outcome for precision in knowing_only.precisions] == ["collapsed", "collapsed"]


def spread(mean: float, items: int = 100, width: float = 0.3, seed: int = 0) -> npt.NDArray[np.float64]:
    """Scores with this mean, spread evenly, in an order of their own."""
    values = np.linspace(max(0, mean / 100 - width), min(1, mean / 100 + width), items)
    return np.random.default_rng(seed).permutation(values - values.mean() + mean / 100)


def test_an_original_that_degrades_makes_no_recovery() -> None:
    """The unlearned model's scores are the same at both precisions; the original's fall as they do in the paper."""
    same = evaluation(spread(20, seed=1), spread(20, seed=2), 80)
    results: Cells = {
        ("original", "full"): evaluation(spread(58.4, seed=3), spread(58.4, seed=4), 80),
        ("original", "rtn-int4"): evaluation(spread(34.2, seed=3), spread(34.2, seed=4), 80),
        ("unlearned", "full"): same,
        ("unlearned", "rtn-int4"): same,
    }
    judgement = judge(results, ["full", "rtn-int4"], METRICS, Policy())
    assert judgement.verdict == "inconclusive"
    assert codes(judgement) == {"original_degraded"}
    assert "the original knows less at rtn-int4" in judgement.reasons[0].sentence
    found = metric(judgement, "rtn-int4", "verbmem")
    assert (known(found.gain).value, known(found.excluded) < 0.1) == (0, True)


def test_a_metric_that_the_quantized_original_lost_is_not_left_out_where_the_unlearned_model_gained() -> None:
    """42 % of the original's knowledge is there at 4 bits, none was in full precision; the original itself is at 39."""
    results: Cells = {}
    for precision, original, unlearned in (("full", 60, 10), ("rtn-int4", 39, 28)):
        results["original", precision] = evaluation(original, original, 90, membership=MEMBER)
        results["retrained", precision] = evaluation(20, 20, 90, membership=OUTSIDER)
        results["unlearned", precision] = evaluation(unlearned, unlearned, 80, membership=OUTSIDER)
    judgement = judge(results, ["full", "rtn-int4"], (*METRICS, "privleak"), Policy())
    assert judgement.verdict in ("recovered", "inconclusive")
    assert {"original_lost_it"} < codes(judgement)
    # Where it gained nothing, nothing speaks against the others.
    results["unlearned", "rtn-int4"] = evaluation(10, 10, 80, membership=OUTSIDER)
    assert judge(results, ["full", "rtn-int4"], (*METRICS, "privleak"), Policy()).verdict == "robust"


def test_zeros_of_items_without_a_number_hide_nothing_where_the_quantized_original_lost_the_metric() -> None:
    results: Cells = {}
    for precision, original in (("full", 60), ("rtn-int4", 39)):
        results["original", precision] = evaluation(original, original, 90, membership=MEMBER)
        results["retrained", precision] = evaluation(20, 20, 90, membership=OUTSIDER)
        results["unlearned", precision] = evaluation(10, 10, 80, membership=OUTSIDER)
    broken = evaluation(10, 10, 80, membership=OUTSIDER)
    scores = scores_of(broken, "verbmem").model_copy(update={"flags": {"non_finite": list(range(30))}})
    results["unlearned", "rtn-int4"] = broken.model_copy(update={"verbmem": scores})
    judgement = judge(results, ["full", "rtn-int4"], (*METRICS, "privleak"), Policy())
    assert judgement.verdict == "inconclusive"
    assert "non_finite_scores" in codes(judgement)


def test_a_metric_that_does_not_count_is_heard_where_the_unlearned_model_knows_more() -> None:
    """The original's KnowMem is only 19 points above the reference; all of them are back at 4 bits."""
    results: Cells = {}
    for precision, unlearned in (("full", 20), ("rtn-int4", 39)):
        results["original", precision] = evaluation(60, 39, 90, membership=MEMBER)
        results["retrained", precision] = evaluation(20, 20, 90, membership=OUTSIDER)
        results["unlearned", precision] = evaluation(10, unlearned, 80, membership=OUTSIDER)
    judgement = judge(results, ["full", "rtn-int4"], (*METRICS, "privleak"), Policy())
    assert [precision.outcome for precision in judgement.precisions] == ["robust", "inconclusive"]
    assert codes(judgement) == {"original_does_not_know", "uncounted_metric_grew"}


def test_a_reference_that_rises_with_the_unlearned_model_excuses_nothing() -> None:
    results: Cells = {}
    for precision, reference, unlearned in (("full", 20, 8), ("rtn-int4", 36, 34)):
        results["original", precision] = evaluation(60, 60, 90, membership=MEMBER)
        results["retrained", precision] = evaluation(reference, reference, 90, membership=OUTSIDER)
        results["unlearned", precision] = evaluation(unlearned, unlearned, 80, membership=OUTSIDER)
    judgement = judge(results, ["full", "rtn-int4"], (*METRICS, "privleak"), Policy())
    assert judgement.verdict == "inconclusive"
    assert {"recovery_not_excluded", "reference_recovers"} <= codes(judgement)


def test_a_trifle_is_no_recovery_though_it_is_shown_and_the_original_falls() -> None:
    results: Cells = {
        ("original", "full"): evaluation(58.4, 58.4, 90),
        ("original", "rtn-int4"): evaluation(34.2, 34.2, 90),
        ("unlearned", "full"): evaluation(15.0, 15.0, 80),
        ("unlearned", "rtn-int4"): evaluation(15.1, 15.1, 80),
    }
    judgement = judge(results, ["full", "rtn-int4"], METRICS, Policy())
    assert (judgement.verdict, codes(judgement)) == ("inconclusive", {"original_degraded"})


def test_what_moved_the_scale_is_named() -> None:
    results: Cells = {("original", p): evaluation(80, 80, 90, membership=MEMBER) for p in ("full", "rtn-int4")}
    results |= {("unlearned", p): evaluation(35, 35, 80, membership=OUTSIDER) for p in ("full", "rtn-int4")}
    results["retrained", "full"] = evaluation(33, 33, 90, membership=OUTSIDER)
    results["retrained", "rtn-int4"] = evaluation(10, 10, 90, membership=OUTSIDER)
    judgement = judge(results, ["full", "rtn-int4"], (*METRICS, "privleak"), Policy())
    (said, *_) = [r.sentence for r in at(judgement, "rtn-int4").reasons if r.code == "original_degraded"]
    assert "the reference knows less at rtn-int4" in said


def test_what_comes_back_to_a_model_that_had_not_forgotten_enough_is_a_recovery_all_the_same() -> None:
    judgement = audit_of(evaluation(70, 5, 80), evaluation(90, 5, 80), original=(100, 100, 90))
    assert [precision.outcome for precision in judgement.precisions] == ["not_forgotten", "recovered"]
    assert judgement.verdict == "recovered"


def test_what_came_back_within_the_margin_is_said() -> None:
    shifted = audit_of(evaluation(5, 5, 80), evaluation(9, 5, 80))
    assert shifted.verdict == "robust"
    assert "came back, within the margin of 10 points: VerbMem +4.4" in at(shifted, "rtn-int4").reasons[-1].sentence


def test_an_equal_gain_at_every_item_may_hide_items_that_were_not_drawn() -> None:
    """Of 20 items all gained alike; a share that lost everything may have been missed."""
    results: Cells = {("original", p): evaluation(100, 100, 90, items=20) for p in ("full", "rtn-int4")}
    results["unlearned", "full"] = evaluation(30, 0, 80, items=20)
    results["unlearned", "rtn-int4"] = evaluation(42, 0, 80, items=20)
    assert judge(results, ["full", "rtn-int4"], METRICS, Policy()).verdict == "inconclusive"


def test_the_limit_holds_at_the_quantized_precision_too() -> None:
    judgement = audit_of(evaluation(46, 5, 80), evaluation(53, 5, 80), original=(100, 100, 90), raw_limit=0.5)
    assert [precision.outcome for precision in judgement.precisions] == ["robust", "not_forgotten"]
    assert judgement.verdict == "not_forgotten"
    assert codes(judgement) == {"retained_when_quantized"}


def test_what_lies_below_the_limit_by_its_value_alone_is_not_called_forgotten_nor_not_forgotten() -> None:
    results: Cells = {}
    for precision in ("full", "rtn-int4"):
        results["original", precision] = evaluation(100, 100, 90, items=40)
        results["retrained", precision] = evaluation(0, 0, 90, items=40)
        results["unlearned", precision] = evaluation(np.array([0.0, 0.9] * 20), 5, 80, items=40)
    judgement = judge(results, ["full", "rtn-int4"], METRICS, Policy())
    found = metric(judgement, "full", "verbmem")
    assert known(found.excess).value == pytest.approx(0.45)
    assert known(found.at_most) > 0.5
    assert judgement.verdict == "inconclusive"
    assert codes(judgement, "full") == {"interval_across_limit"}
    assert "items like these would decide it" in at(judgement, "full").reasons[0].sentence


def test_utility_near_its_floor_is_neither_kept_nor_lost() -> None:
    near = np.array([0.0, 1.0] * 11)
    low: Cells = {
        (role, p): evaluation(v, v, near * 0.95 if role == "unlearned" else np.full(22, 0.9), items=22)
        for role, v in zip(PAIR, (90, 5), strict=True)
        for p in ("full", "rtn-int4")
    }
    judgement = judge(low, ["full", "rtn-int4"], METRICS, Policy())
    assert judgement.verdict == "inconclusive"
    assert codes(judgement) >= {"utility_across_floor"}


def test_a_robust_audit_says_what_it_could_have_missed_and_how_many_tests_it_made() -> None:
    judgement = audit_of(evaluation(10, 10, 80), evaluation(12, 12, 80))
    assert judgement.verdict == "robust"
    assert judgement.tests.model_dump() == {"recovered": 2, "not_forgotten": 4, "collapsed": 2, "corroboration": 0}
    verbmem, _, together, tests = judgement.missed
    assert together.startswith("Together: a recovery of more than 5 points, of whichever metric")
    assert verbmem.startswith(
        "VerbMem: a recovery of more than 5 points of what the original knows is excluded at 95 %"
    )
    assert "2 of recovery" in tests
    assert "at most 5 %" in tests


def test_a_few_items_that_show_nothing_exclude_little() -> None:
    """Of 20 items none came back; 14 % of all items could, and the sample would still look like this in 5 %."""
    judgement = judge(
        {
            (role, p): evaluation(v, v, 80, items=20)
            for role, v in zip(PAIR, (100, 0), strict=True)
            for p in ("full", "rtn-int4")
        },
        ["full", "rtn-int4"], METRICS, Policy(),
    )  # fmt: skip
    assert metric(judgement, "rtn-int4", "verbmem").excluded == pytest.approx(1 - 0.05 ** (1 / 20))


def test_every_test_of_a_plan_shares_the_error_of_its_kind() -> None:
    """A recovery that one test would show is not shown when it is one of many."""
    rng = np.random.default_rng(5)
    quantized = [f"rtn-int4-{n}" for n in range(12)]
    flat: Cells = {("original", p): evaluation(90, 90, 90) for p in ["full", *quantized]}
    noise = np.clip(0.05 + rng.normal(0.165, 0.25, 100), 0, 1)
    flat |= {("unlearned", p): evaluation(5, 5, 80) for p in ["full", *quantized[1:]]}
    flat |= {("unlearned", quantized[0]): evaluation(noise, 5, 80)}
    alone = judge(flat, ["full", quantized[0]], METRICS, Policy())
    among = judge(flat, ["full", *quantized], METRICS, Policy())
    assert (alone.verdict, among.verdict) == ("recovered", "inconclusive")
    assert (alone.tests.recovered, among.tests.recovered) == (2, 24)
