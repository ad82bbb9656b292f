"""The verdict against the published figures and against models made to fit each outcome."""

import json
from pathlib import Path

import numpy as np
import pytest

from app.reports import judge as rules
from app.reports.bootstrap import auc, auc_series, estimate, mean_series, privleak, resample_weights
from app.reports.policy import Policy
from app.reports.verdict import Failure, Judgement
from tests.evaluations import MEMBER, OUTSIDER, evaluation, knowing

REFERENCE_SCORES = Path(__file__).parents[3] / "shared" / "data" / "reference-scores" / "privleak.json"

# arXiv 2410.16454 v1, Table 1: (VerbMem, KnowMem forget, KnowMem retain); full precision, then 4-bit.
PUBLISHED = {
    "news": {
        "original": ((58.4, 63.9, 55.2), (34.2, 54.4, 48.2)),
        "GA_GDR": ((0.0, 28.9, 34.2), (25.0, 50.1, 47.7)),
        "GA_KLR": ((14.1, 27.1, 23.1), (33.8, 50.9, 45.8)),
        "NPO_GDR": ((0.3, 46.1, 38.6), (33.2, 51.4, 48.2)),
    },
    "books": {
        "original": ((99.8, 59.4, 66.9), (85.3, 36.8, 50.5)),
        "GA_GDR": ((0.0, 2.9, 44.2), (17.9, 33.7, 51.9)),
        "GA_KLR": ((13.0, 15.1, 33.7), (75.6, 34.6, 51.3)),
        "NPO_GDR": ((0.4, 13.4, 58.6), (66.0, 31.9, 53.2)),
    },
}
NEWS_RETRAINED = {"verbmem": 0.208, "knowmem_forget": 0.331}
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


def published(corpus, method, references=None, **policy) -> Judgement:
    rows = PUBLISHED[corpus]
    results = {}
    for role, row in (("original", rows["original"]), ("unlearned", rows[method])):
        for precision, cells in zip(("full", "rtn-int4"), row, strict=True):
            results[role, precision] = evaluation(*cells)
    return judge(results, ["full", "rtn-int4"], METRICS, Policy(resamples=200, **policy), references)


def at(judgement: Judgement, precision: str):
    return next(p for p in judgement.precisions if p.precision == precision)


def metric(judgement: Judgement, precision: str, name: str):
    return next(m for m in at(judgement, precision).metrics if m.metric == name)


def test_the_published_table_gives_the_headline_of_21_and_83_percent():
    """Retention at the same precision, over VerbMem and KnowMem, both corpora, three methods."""
    kept = {"full": [], "rtn-int4": []}
    to_full = []
    for corpus, rows in PUBLISHED.items():
        for method in rows.keys() - {"original"}:
            judgement = published(corpus, method)
            for precision, values in kept.items():
                values += [metric(judgement, precision, m).raw.value for m in ("verbmem", "knowmem_forget")]
            to_full += [metric(judgement, "rtn-int4", m).raw_to_full_original for m in ("verbmem", "knowmem_forget")]
    assert round(100 * np.mean(kept["full"]), 1) == 20.9
    assert round(100 * np.mean(kept["rtn-int4"]), 1) == 84.0
    assert round(100 * np.mean(to_full), 1) == 60.4


def test_npo_gdr_on_news_is_recovered():
    judgement = published("news", "NPO_GDR", NEWS_RETRAINED, min_original=0.1)
    assert judgement.verdict == "recovered"
    assert metric(judgement, "full", "knowmem_forget").excess.value == pytest.approx(0.42, abs=0.005)
    # science.md says "0.84 to 0.94" of the 4-bit rows; with the full-precision retrained model as reference:
    assert metric(judgement, "rtn-int4", "knowmem_forget").excess.value == pytest.approx(0.859, abs=0.001)
    assert metric(judgement, "rtn-int4", "verbmem").excess.value == pytest.approx(0.925, abs=0.001)


def test_npo_gdr_on_news_is_recovered_under_the_default_policy_by_knowmem_alone():
    judgement = published("news", "NPO_GDR", NEWS_RETRAINED)
    assert judgement.verdict == "recovered"
    assert metric(judgement, "rtn-int4", "verbmem").outcome is None
    assert {r.code for r in at(judgement, "rtn-int4").reasons} == {"original_lost_it", "knowledge_returned"}


def test_ga_klr_on_news_collapsed():
    judgement = published("news", "GA_KLR", NEWS_RETRAINED)
    assert judgement.verdict == "collapsed"
    assert at(judgement, "full").utility.value == pytest.approx(0.42, abs=0.005)


def test_a_model_that_never_forgot_is_not_called_robust():
    """The LoRA paper's NEWS rows: nothing was forgotten in the first place."""
    same = {(role, p): evaluation(58.4, 63.9, 55.2) for role in ("original", "unlearned") for p in ("full", "rtn-int4")}
    assert judge(same, ["full", "rtn-int4"], METRICS, Policy(resamples=200)).verdict == "not_forgotten"


def audit_of(unlearned_full, unlearned_4bit, original=(90, 90, 90), **policy):
    results = {
        ("original", "full"): evaluation(*original),
        ("original", "rtn-int4"): evaluation(*original),
        ("unlearned", "full"): unlearned_full,
        ("unlearned", "rtn-int4"): unlearned_4bit,
    }
    return judge(results, ["full", "rtn-int4"], METRICS, Policy(resamples=500, **policy))


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
    judgement = judge(few, ["full", "rtn-int4"], METRICS, Policy(resamples=200))
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
    judgement = judge(results, ["full", "rtn-int2"], METRICS, Policy(resamples=200))
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
    judgement = judge(results, ["full", "rtn-int4", "bnb-nf4"], METRICS, Policy(resamples=200))
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
    judgement = judge(results, ["full", "rtn-int4"], METRICS, Policy(resamples=2000))
    assert judgement.verdict == "inconclusive"
    assert "interval_across_margin" in codes(judgement)


def test_without_retain_questions_a_silent_model_is_not_called_robust():
    results = {
        (role, p): evaluation(v, v) for role, v in (("original", 90), ("unlearned", 5)) for p in ("full", "rtn-int4")
    }
    judgement = judge(results, ["full", "rtn-int4"], METRICS, Policy(resamples=200))
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
    with_reference = judge(results, ["full", "rtn-int4"], METRICS, Policy(resamples=200))
    assert with_reference.verdict == "robust"
    assert metric(with_reference, "full", "verbmem").excess.value == pytest.approx(1 / 3)
    without = {k: v for k, v in results.items() if k[0] != "retrained"}
    assert judge(without, ["full", "rtn-int4"], METRICS, Policy(resamples=200)).verdict == "not_forgotten"


def test_privleak_counts_only_with_a_reference_and_never_assumes_one_half():
    rng = np.random.default_rng(0)
    member, outsider = rng.normal(1, 0.1, 40), rng.normal(5, 0.1, 40)
    results = {}
    for p in ("full", "rtn-int4"):
        results["original", p] = evaluation(90, 90, 90, membership=(member, outsider))
        leaks = member if p == "rtn-int4" else outsider
        results["unlearned", p] = evaluation(5, 5, 80, membership=(leaks, outsider + rng.normal(0, 0.1, 40)))
    metrics = (*METRICS, "privleak")
    without = judge(results, ["full", "rtn-int4"], metrics, Policy(resamples=500))
    assert (at(without, "full").outcome, without.verdict) == ("robust", "inconclusive")
    assert "membership_unmoved" in codes(without)
    assert metric(without, "full", "privleak").outcome is None
    assert metric(without, "full", "privleak").auc["original"] == 0.0
    with_constant = judge(results, ["full", "rtn-int4"], metrics, Policy(resamples=500), {"privleak": 0.4772})
    assert with_constant.verdict == "recovered"
    assert metric(with_constant, "rtn-int4", "privleak").original == -100.0


def test_auc_by_resampling_weights_equals_auc_by_ranks():
    rng = np.random.default_rng(1)
    forget, holdout = rng.integers(0, 9, 30).astype(float), rng.integers(3, 12, 25).astype(float)
    series = auc_series(forget, holdout, resample_weights(30, 300, 0), resample_weights(25, 300, 1))
    assert series[0] == pytest.approx(auc(forget, holdout))
    by_hand = np.mean([(f > h) + 0.5 * (f == h) for f in forget for h in holdout])
    assert series[0] == pytest.approx(by_hand)


def test_the_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    weights = resample_weights(60, 1000, 0)
    hits = 0
    for _ in range(300):
        found = estimate(mean_series(rng.beta(2, 3, 60), weights), 0.95)
        hits += found.low <= 0.4 <= found.high
    assert 0.90 <= hits / 300 <= 0.98


@pytest.mark.parametrize(("model", "expected"), [("books_target", -57.111), ("books_ga_klr", -37.901)])
def test_privleak_of_two_published_7b_models_comes_out(model, expected):
    if not REFERENCE_SCORES.exists():
        pytest.skip("the reference scores lie beside the project, not in it")
    found = json.loads(REFERENCE_SCORES.read_text())[model]
    value = auc(np.array(found["min40"]["forget"]), np.array(found["min40"]["holdout"]))
    assert privleak(np.array([value]), 0.5393)[0] == pytest.approx(expected, abs=0.01)


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
    return judge(results, ["full", "rtn-int4"], metrics, Policy(resamples=500), {"privleak": 0.4772})


def test_texts_without_a_statistic_count_in_no_model():
    judgement = membership_audit({"forget.non_finite": [0, 1], "holdout.too_short": [3]})
    assert judgement.verdict == "robust"
    assert metric(judgement, "rtn-int4", "privleak").outcome == "robust"


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
    judgement = judge(results, ["full"], METRICS, Policy(resamples=200))
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


def test_what_returns_to_a_model_that_was_broken_in_full_precision_is_called_collapsed():
    judgement = audit_of(evaluation(5, 5, 10), evaluation(88, 88, 88))
    assert judgement.verdict == "collapsed"
    assert "knowledge_returned" in codes(judgement)


def test_an_evaluation_that_failed_in_full_precision_is_told_once():
    results = {
        ("original", "full"): evaluation(90, 90, 90),
        ("unlearned", "full"): Failure(code="engine_error", detail="x"),
    }
    judgement = judge(results, ["full"], METRICS, Policy(resamples=200))
    assert [r.code for r in judgement.reasons] == ["engine_error"]
