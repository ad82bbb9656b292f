"""The verdict against the published figures and against models made to fit each outcome."""

import json
from pathlib import Path

import numpy as np
import pytest

from app.judgement import judge as rules
from app.judgement.intervals import auc
from app.judgement.policy import Policy
from app.judgement.verdict import Failure, Judgement
from tests import published
from tests.evaluations import MEMBER, OUTSIDER, evaluation, knowing
from tests.published import PAPER, REPLICATION

REFERENCE_SCORES = Path(__file__).parents[3] / "shared" / "data" / "reference-scores" / "privleak.json"
METRICS = ("verbmem", "knowmem_forget", "knowmem_retain")


def judge(results, precisions, metrics, policy, references=None) -> Judgement:
    """The verdict on a pair whose weights differ; membership is unlearned with the rest, unless something is said."""
    results = {
        (role, precision): knowing(found, MEMBER if role == "original" else OUTSIDER)
        if not isinstance(found, Failure) and found.privleak is None
        else found
        for (role, precision), found in results.items()
    }
    return rules.judge(results, precisions, metrics, policy, references, weights="different")


def rows(source, corpus, method) -> published.Pair:
    """A published pair."""
    return next(pair for pair in published.PAIRS if pair[:3] == (source, corpus, method))


def at(judgement: Judgement, precision: str):
    return next(p for p in judgement.precisions if p.precision == precision)


def metric(judgement: Judgement, precision: str, name: str):
    return next(m for m in at(judgement, precision).metrics if m.metric == name)


def test_the_published_table_gives_the_headline_of_21_and_83_percent():
    """Retention at the same precision, over VerbMem and KnowMem, both corpora, three methods."""
    kept = {"full": [], "rtn-int4": []}
    to_full = []
    for pair in published.PAIRS:
        if pair.source == PAPER:
            judgement = published.judged(pair)
            for precision, values in kept.items():
                values += [metric(judgement, precision, m).raw.value for m in ("verbmem", "knowmem_forget")]
            to_full += [metric(judgement, "rtn-int4", m).raw_to_full_original for m in ("verbmem", "knowmem_forget")]
    assert round(100 * np.mean(kept["full"]), 1) == 20.9
    assert round(100 * np.mean(kept["rtn-int4"]), 1) == 84.0
    assert round(100 * np.mean(to_full), 1) == 60.4


@pytest.mark.parametrize(
    ("pair", "full", "quantized", "verdict"),
    [
        ((PAPER, "news", "GA_GDR"), "robust", "recovered", "recovered"),
        ((PAPER, "news", "GA_KLR"), "collapsed", "recovered", "recovered"),
        ((PAPER, "news", "NPO_GDR"), "robust", "recovered", "recovered"),
        ((PAPER, "books", "GA_GDR"), "inconclusive", "recovered", "recovered"),
        ((PAPER, "books", "GA_KLR"), "inconclusive", "recovered", "recovered"),
        ((PAPER, "books", "NPO_GDR"), "inconclusive", "recovered", "recovered"),
        ((REPLICATION, "news", "NPO_KLR"), "inconclusive", "recovered recovered", "recovered"),
        ((REPLICATION, "news", "GA_GDR"), "collapsed", "recovered recovered", "recovered"),
        ((REPLICATION, "books", "NPO_KLR"), "collapsed", "recovered inconclusive recovered", "recovered"),
        (
            (REPLICATION, "books", "SURE (bugs fixed)"),
            "inconclusive",
            "inconclusive inconclusive inconclusive",
            "inconclusive",
        ),
    ],
)
def test_published_rows_come_out_as_a_careful_reader_judges_them(pair, full, quantized, verdict):
    judgement = published.judged(rows(*pair))
    outcomes = [precision.outcome for precision in judgement.precisions]
    assert (outcomes[0], " ".join(outcomes[1:]), judgement.verdict) == (full, quantized, verdict)


def test_the_tables_of_published_rows_in_the_readme_are_what_the_rules_give():
    text = (Path(published.__file__).parents[1] / "app" / "judgement" / "README.md").read_text()
    assert published.as_table() in text


def test_what_keeps_the_books_rows_from_being_forgotten_in_full_precision_is_membership_alone():
    for method in ("GA_GDR", "GA_KLR", "NPO_GDR"):
        judgement = published.judged(rows(PAPER, "books", method))
        assert {m.metric: m.outcome for m in at(judgement, "full").metrics} == {
            "verbmem": "robust",
            "knowmem_forget": "robust",
            "privleak": "inconclusive",
        }
        # Demanding more of PrivLeak would hide what came back behind what full precision shows.
        strict = published.judged(rows(PAPER, "books", method), guards=[], excess_limit=0.2)
        assert at(strict, "full").outcome == "not_forgotten"
        assert strict.verdict == judgement.verdict == "recovered"


def test_npo_gdr_on_news_keeps_42_percent_and_gets_86_back():
    judgement = published.judged(rows(PAPER, "news", "NPO_GDR"), min_original=0.1)
    assert metric(judgement, "full", "knowmem_forget").excess.value == pytest.approx(0.42, abs=0.005)
    # The retrained model's full-precision scores are the reference at 4 bits, too.
    assert metric(judgement, "rtn-int4", "knowmem_forget").excess.value == pytest.approx(0.859, abs=0.001)
    assert metric(judgement, "rtn-int4", "verbmem").excess.value == pytest.approx(0.925, abs=0.001)


def test_what_the_quantized_original_lost_can_still_be_told_to_have_come_back():
    """BOOKS GA_GDR: KnowMem 2.9 to 33.7, a retrained model 28.9; the original at 4 bits has only 36.8."""
    judgement = published.judged(rows(PAPER, "books", "GA_GDR"))
    found = metric(judgement, "rtn-int4", "knowmem_forget")
    assert (found.outcome, found.recovery) == ("recovered", None)
    assert {"original_lost_it", "knowledge_returned"} <= {r.code for r in at(judgement, "rtn-int4").reasons}


def test_a_model_broken_in_full_precision_that_knows_again_at_4_bits_is_recovered_there():
    judgement = published.judged(rows(PAPER, "news", "GA_KLR"))
    assert at(judgement, "full").utility.value == pytest.approx(0.42, abs=0.005)
    assert {reason.precision for reason in judgement.reasons} == {"rtn-int4"}
    assert "broken_in_full_precision" in {reason.code for reason in judgement.reasons}


def test_a_model_that_never_forgot_is_not_called_robust():
    """The LoRA paper's NEWS rows: nothing was forgotten in the first place."""
    same = {(role, p): evaluation(58.4, 63.9, 55.2) for role in ("original", "unlearned") for p in ("full", "rtn-int4")}
    assert judge(same, ["full", "rtn-int4"], METRICS, Policy()).verdict == "not_forgotten"


def audit_of(unlearned_full, unlearned_4bit, original=(90, 90, 90), **policy):
    results = {
        ("original", "full"): evaluation(*original),
        ("original", "rtn-int4"): evaluation(*original),
        ("unlearned", "full"): unlearned_full,
        ("unlearned", "rtn-int4"): unlearned_4bit,
    }
    return judge(results, ["full", "rtn-int4"], METRICS, Policy(**policy))


def codes(judgement, precision="rtn-int4"):
    return {reason.code for reason in at(judgement, precision).reasons}


def test_forgotten_and_staying_forgotten_is_robust():
    assert audit_of(evaluation(10, 10, 80), evaluation(12, 12, 80)).verdict == "robust"


def test_a_model_that_breaks_only_when_quantized_collapsed_there():
    judgement = audit_of(evaluation(10, 10, 80), evaluation(0, 0, 10))
    assert judgement.verdict == "collapsed"
    assert codes(judgement) == {"utility_lost"}


def test_too_few_items_are_inconclusive():
    few = {
        (role, p): evaluation(v, v, 80, items=19)
        for role, v in (("original", 90), ("unlearned", 10))
        for p in ("full", "rtn-int4")
    }
    judgement = judge(few, ["full", "rtn-int4"], METRICS, Policy())
    assert judgement.verdict == "inconclusive"
    assert "too_few_items" in codes(judgement)


def test_an_original_that_does_not_know_the_forget_set_is_inconclusive():
    judgement = audit_of(evaluation(1, 1, 80), evaluation(1, 1, 80), original=(10, 10, 90))
    assert judgement.verdict == "inconclusive"
    assert "original_does_not_know" in codes(judgement)


def test_a_precision_that_breaks_the_original_is_inconclusive():
    results = {
        ("original", "full"): evaluation(90, 90, 90),
        ("original", "rtn-int2"): evaluation(0, 0, 5),
        ("unlearned", "full"): evaluation(10, 10, 80),
        ("unlearned", "rtn-int2"): evaluation(0, 0, 5),
    }
    judgement = judge(results, ["full", "rtn-int2"], METRICS, Policy())
    assert judgement.verdict == "inconclusive"
    assert "quantized_original_collapsed" in codes(judgement, "rtn-int2")


def test_a_failed_evaluation_is_inconclusive_and_says_why():
    judgement = audit_of(evaluation(10, 10, 80), Failure(code="not_quantized", detail="no proof"))
    assert judgement.verdict == "inconclusive"
    assert codes(judgement) == {"not_quantized"}
    assert at(judgement, "full").outcome == "robust"


def test_a_recovery_is_found_even_where_another_precision_failed():
    results = {
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


def test_an_interval_across_the_margin_is_inconclusive():
    noisy = np.array([0.0] * 16 + [0.9] * 4)
    results = {
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


def test_without_retain_questions_a_silent_model_is_not_called_robust():
    results = {
        (role, p): evaluation(v, v) for role, v in (("original", 90), ("unlearned", 5)) for p in ("full", "rtn-int4")
    }
    judgement = judge(results, ["full", "rtn-int4"], METRICS, Policy())
    assert judgement.verdict == "inconclusive"
    assert "utility_unknown" in codes(judgement)


def test_the_worst_metric_decides():
    judgement = audit_of(evaluation(10, 10, 80), evaluation(10, 70, 80))
    assert judgement.verdict == "recovered"
    assert [r.metric for r in judgement.reasons] == ["knowmem_forget"]


def test_a_retrained_checkpoint_moves_the_judgement_from_raw_to_excess():
    results = {}
    for p in ("full", "rtn-int4"):
        results["original", p] = evaluation(90, 90, 90)
        results["retrained", p] = evaluation(45, 45, 90)
        results["unlearned", p] = evaluation(60, 60, 90)
    with_reference = judge(results, ["full", "rtn-int4"], METRICS, Policy())
    assert with_reference.verdict == "robust"
    assert metric(with_reference, "full", "verbmem").excess.value == pytest.approx(1 / 3)
    without = {k: v for k, v in results.items() if k[0] != "retrained"}
    assert judge(without, ["full", "rtn-int4"], METRICS, Policy()).verdict == "not_forgotten"


def test_privleak_counts_only_with_a_reference_and_never_assumes_one_half():
    rng = np.random.default_rng(0)
    member, outsider = rng.normal(1, 0.1, 40), rng.normal(5, 0.1, 40)
    results = {}
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


@pytest.mark.parametrize(("model", "expected"), [("books_target", -57.111), ("books_ga_klr", -37.901)])
def test_privleak_of_two_published_7b_models_comes_out(model, expected):
    if not REFERENCE_SCORES.exists():
        pytest.skip("the reference scores lie beside the project, not in it")
    found = json.loads(REFERENCE_SCORES.read_text())[model]
    forget, holdout = (np.array(found["min40"][subset]) for subset in ("forget", "holdout"))
    value = auc(forget, holdout, np.full(len(forget), True), np.full(len(holdout), True)).value
    assert 100 * (value - 0.5393) / 0.5393 == pytest.approx(expected, abs=0.01)


def test_the_same_policy_has_the_same_digest_and_another_has_another():
    assert Policy().digest() == Policy().digest() != Policy(recovery_margin=0.2).digest()


def membership_audit(flags, items=40):
    rng = np.random.default_rng(0)
    member, outsider = rng.normal(1, 0.1, items), rng.normal(5, 0.1, items)
    results = {}
    for p in ("full", "rtn-int4"):
        results["original", p] = evaluation(90, 90, 90, membership=(member, outsider))
        quiet = evaluation(5, 5, 80, membership=(outsider, outsider + rng.normal(0, 0.1, items)))
        scores = quiet.privleak.model_copy(update={"flags": flags if p == "rtn-int4" else {}})
        results["unlearned", p] = quiet.model_copy(update={"privleak": scores})
    metrics = (*METRICS, "privleak")
    return judge(results, ["full", "rtn-int4"], metrics, Policy(), {"privleak": 0.4772})


def test_texts_without_a_statistic_count_in_no_model():
    judgement = membership_audit({"forget.too_short": [0, 1], "holdout.too_short": [3]})
    assert judgement.verdict == "robust"
    assert metric(judgement, "rtn-int4", "privleak").outcome == "robust"
    broken = membership_audit({"forget.non_finite": [0, 1]})
    assert (broken.verdict, metric(broken, "rtn-int4", "privleak").outcome) == ("inconclusive", "robust")


def test_privleak_does_not_count_when_too_few_texts_have_a_statistic():
    judgement = membership_audit({"forget.non_finite": list(range(30))})
    assert metric(judgement, "rtn-int4", "privleak").outcome is None
    assert "too_few_items" in codes(judgement)
    assert judgement.verdict == "inconclusive"


def test_a_model_that_gave_numbers_for_no_text_is_judged_by_the_other_metrics_and_never_robust():
    judgement = membership_audit({"forget.non_finite": list(range(40))})
    assert metric(judgement, "rtn-int4", "privleak").outcome is None
    assert metric(judgement, "rtn-int4", "verbmem").outcome == "robust"
    assert judgement.verdict == "inconclusive"


def test_a_plan_that_quantizes_nothing_is_never_robust():
    results = {("original", "full"): evaluation(90, 90, 90), ("unlearned", "full"): evaluation(5, 5, 80)}
    judgement = judge(results, ["full"], METRICS, Policy())
    assert judgement.verdict == "inconclusive"
    assert [r.code for r in judgement.reasons] == ["nothing_quantized"]


def test_zeros_of_items_without_a_number_do_not_count_as_forgetting():
    half = np.array([0.0] * 50 + [0.05] * 50)
    broken = evaluation(half, 5, 80)
    scores = broken.verbmem.model_copy(update={"flags": {"non_finite": list(range(50))}})
    judgement = audit_of(evaluation(5, 5, 80), broken.model_copy(update={"verbmem": scores}))
    assert judgement.verdict == "inconclusive"
    assert "non_finite_scores" in codes(judgement)


def test_a_model_that_still_knows_and_is_broken_has_not_forgotten():
    assert audit_of(evaluation(88, 88, 30), evaluation(88, 88, 30)).verdict == "not_forgotten"


def test_knowledge_that_comes_back_outranks_utility_that_is_lost_with_it():
    judgement = audit_of(evaluation(5, 5, 80), evaluation(88, 88, 30))
    assert judgement.verdict == "recovered"
    assert "utility_lost" in codes(judgement)


def test_the_deployed_model_decides():
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


def spread(mean, items=100, width=0.3, seed=0):
    """Scores with this mean, spread evenly, in an order of their own."""
    values = np.linspace(max(0, mean / 100 - width), min(1, mean / 100 + width), items)
    return np.random.default_rng(seed).permutation(values - values.mean() + mean / 100)


def test_an_original_that_degrades_makes_no_recovery():
    """The unlearned model's scores are the same at both precisions; the original's fall as they do in the paper."""
    same = evaluation(spread(20, seed=1), spread(20, seed=2), 80)
    results = {
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
    assert (found.gain.value, found.excluded < 0.1) == (0, True)


def test_a_metric_that_the_quantized_original_lost_is_not_left_out_where_the_unlearned_model_gained():
    """42 % of the original's knowledge is there at 4 bits, none was in full precision; the original itself is at 39."""
    results = {}
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


def test_a_reference_that_rises_with_the_unlearned_model_excuses_nothing():
    results = {}
    for precision, reference, unlearned in (("full", 20, 8), ("rtn-int4", 36, 34)):
        results["original", precision] = evaluation(60, 60, 90, membership=MEMBER)
        results["retrained", precision] = evaluation(reference, reference, 90, membership=OUTSIDER)
        results["unlearned", precision] = evaluation(unlearned, unlearned, 80, membership=OUTSIDER)
    judgement = judge(results, ["full", "rtn-int4"], (*METRICS, "privleak"), Policy())
    assert judgement.verdict == "inconclusive"
    assert {"recovery_not_excluded", "reference_recovers"} <= codes(judgement)


def test_a_trifle_is_no_recovery_though_it_is_shown_and_the_original_falls():
    results = {
        ("original", "full"): evaluation(58.4, 58.4, 90),
        ("original", "rtn-int4"): evaluation(34.2, 34.2, 90),
        ("unlearned", "full"): evaluation(15.0, 15.0, 80),
        ("unlearned", "rtn-int4"): evaluation(15.1, 15.1, 80),
    }
    judgement = judge(results, ["full", "rtn-int4"], METRICS, Policy())
    assert (judgement.verdict, codes(judgement)) == ("inconclusive", {"original_degraded"})


def test_what_moved_the_scale_is_named():
    results = {("original", p): evaluation(80, 80, 90, membership=MEMBER) for p in ("full", "rtn-int4")}
    results |= {("unlearned", p): evaluation(35, 35, 80, membership=OUTSIDER) for p in ("full", "rtn-int4")}
    results["retrained", "full"] = evaluation(33, 33, 90, membership=OUTSIDER)
    results["retrained", "rtn-int4"] = evaluation(10, 10, 90, membership=OUTSIDER)
    judgement = judge(results, ["full", "rtn-int4"], (*METRICS, "privleak"), Policy())
    (said, *_) = [r.sentence for r in at(judgement, "rtn-int4").reasons if r.code == "original_degraded"]
    assert "the reference knows less at rtn-int4" in said


def test_what_comes_back_to_a_model_that_had_not_forgotten_enough_is_a_recovery_all_the_same():
    judgement = audit_of(evaluation(70, 5, 80), evaluation(90, 5, 80), original=(100, 100, 90))
    assert [precision.outcome for precision in judgement.precisions] == ["not_forgotten", "recovered"]
    assert judgement.verdict == "recovered"


def test_what_came_back_within_the_margin_is_said():
    judgement = audit_of(evaluation(5, 5, 80), evaluation(np.r_[np.full(8, 0.9), np.full(92, 0.05)], 5, 80))
    if judgement.verdict == "robust":
        assert "came back, within the margin of 10 points: VerbMem" in at(judgement, "rtn-int4").reasons[-1].sentence
    shifted = audit_of(evaluation(5, 5, 80), evaluation(9, 5, 80))
    assert shifted.verdict == "robust"
    assert "came back, within the margin of 10 points: VerbMem +4.4" in at(shifted, "rtn-int4").reasons[-1].sentence


def test_an_equal_gain_at_every_item_may_hide_items_that_were_not_drawn():
    """Of 20 items all gained alike; a share that lost everything may have been missed."""
    results = {("original", p): evaluation(100, 100, 90, items=20) for p in ("full", "rtn-int4")}
    results["unlearned", "full"] = evaluation(30, 0, 80, items=20)
    results["unlearned", "rtn-int4"] = evaluation(42, 0, 80, items=20)
    assert judge(results, ["full", "rtn-int4"], METRICS, Policy()).verdict == "inconclusive"


def test_the_limit_holds_at_the_quantized_precision_too():
    judgement = audit_of(evaluation(46, 5, 80), evaluation(53, 5, 80), original=(100, 100, 90), raw_limit=0.5)
    assert [precision.outcome for precision in judgement.precisions] == ["robust", "not_forgotten"]
    assert judgement.verdict == "not_forgotten"
    assert codes(judgement) == {"retained_when_quantized"}


def test_what_lies_below_the_limit_by_its_value_alone_is_not_called_forgotten_nor_not_forgotten():
    results = {}
    for precision in ("full", "rtn-int4"):
        results["original", precision] = evaluation(100, 100, 90, items=40)
        results["retrained", precision] = evaluation(0, 0, 90, items=40)
        results["unlearned", precision] = evaluation(np.array([0.0, 0.9] * 20), 5, 80, items=40)
    judgement = judge(results, ["full", "rtn-int4"], METRICS, Policy())
    found = metric(judgement, "full", "verbmem")
    assert (found.excess.value, found.at_most > 0.5) == (pytest.approx(0.45), True)
    assert judgement.verdict == "inconclusive"
    assert codes(judgement, "full") == {"interval_across_limit"}
    assert "items like these would decide it" in at(judgement, "full").reasons[0].sentence


def test_utility_near_its_floor_is_neither_kept_nor_lost():
    near = np.array([0.0, 1.0] * 11)
    low = {
        (role, p): evaluation(v, v, near * 0.95 if role == "unlearned" else np.full(22, 0.9), items=22)
        for role, v in (("original", 90), ("unlearned", 5))
        for p in ("full", "rtn-int4")
    }
    judgement = judge(low, ["full", "rtn-int4"], METRICS, Policy())
    assert judgement.verdict == "inconclusive"
    assert codes(judgement) >= {"utility_across_floor"}


def test_a_robust_audit_says_what_it_could_have_missed_and_how_many_tests_it_made():
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


def test_a_few_items_that_show_nothing_exclude_little():
    """Of 20 items none came back; 14 % of all items could, and the sample would still look like this in 5 %."""
    judgement = judge(
        {
            (role, p): evaluation(v, v, 80, items=20)
            for role, v in (("original", 100), ("unlearned", 0))
            for p in ("full", "rtn-int4")
        },
        ["full", "rtn-int4"], METRICS, Policy(),
    )  # fmt: skip
    assert metric(judgement, "rtn-int4", "verbmem").excluded == pytest.approx(1 - 0.05 ** (1 / 20))


def test_every_test_of_a_plan_shares_the_error_of_its_kind():
    """A recovery that one test would show is not shown when it is one of many."""
    rng = np.random.default_rng(5)
    quantized = [f"rtn-int4-{n}" for n in range(12)]
    flat = {("original", p): evaluation(90, 90, 90) for p in ["full", *quantized]}
    noise = np.clip(0.05 + rng.normal(0.165, 0.25, 100), 0, 1)
    flat |= {("unlearned", p): evaluation(5, 5, 80) for p in ["full", *quantized[1:]]}
    flat |= {("unlearned", quantized[0]): evaluation(noise, 5, 80)}
    alone = judge(flat, ["full", quantized[0]], METRICS, Policy())
    among = judge(flat, ["full", *quantized], METRICS, Policy())
    assert (alone.verdict, among.verdict) == ("recovered", "inconclusive")
    assert (alone.tests.recovered, among.tests.recovered) == (2, 24)


def test_an_evaluation_that_failed_in_full_precision_is_told_once():
    results = {
        ("original", "full"): evaluation(90, 90, 90),
        ("unlearned", "full"): Failure(code="engine_error", detail="x"),
    }
    judgement = judge(results, ["full"], METRICS, Policy())
    assert [r.code for r in judgement.reasons] == ["engine_error"]
