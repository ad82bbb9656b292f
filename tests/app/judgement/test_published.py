"""The verdict on published figures."""

import json

import numpy as np
import pytest

from app.judgement.statistics.intervals import auc
from tests.support.judgement import published
from tests.support.judgement.evaluations import known
from tests.support.judgement.judgements import at, metric
from tests.support.judgement.published import PAPER, REPLICATION
from tests.support.places import REFERENCE_SCORES, REPOSITORY


def rows(source: str, corpus: str, method: str) -> published.Pair:
    """A published pair."""
    return next(pair for pair in published.PAIRS if pair[:3] == (source, corpus, method))


def test_the_published_table_gives_the_headline_of_21_and_83_percent() -> None:
    """Retention at the same precision, over VerbMem and KnowMem, both corpora, three methods."""
    kept: dict[str, list[float]] = {"full": [], "rtn-int4": []}
    to_full = []
    for pair in published.PAIRS:
        if pair.source == PAPER:
            judgement = published.judged(pair)
            for precision, values in kept.items():
                values += [known(metric(judgement, precision, m).raw).value for m in ("verbmem", "knowmem_forget")]
            to_full += [
                known(metric(judgement, "rtn-int4", m).raw_to_full_original) for m in ("verbmem", "knowmem_forget")
            ]
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
def test_published_rows_come_out_as_a_careful_reader_judges_them(
    pair: tuple[str, str, str], full: str, quantized: str, verdict: str
) -> None:
    judgement = published.judged(rows(*pair))
    outcomes = [precision.outcome for precision in judgement.precisions]
    assert (outcomes[0], " ".join(outcomes[1:]), judgement.verdict) == (full, quantized, verdict)


def test_the_tables_of_published_rows_in_the_readme_are_what_the_rules_give() -> None:
    text = (REPOSITORY / "app" / "judgement" / "README.md").read_text()
    assert published.as_table() in text


def test_what_keeps_the_books_rows_from_being_forgotten_in_full_precision_is_membership_alone() -> None:
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


def test_npo_gdr_on_news_keeps_42_percent_and_gets_86_back() -> None:
    judgement = published.judged(rows(PAPER, "news", "NPO_GDR"), min_original=0.1)
    assert known(metric(judgement, "full", "knowmem_forget").excess).value == pytest.approx(0.42, abs=0.005)
    # The retrained model's full-precision scores are the reference at 4 bits, too.
    assert known(metric(judgement, "rtn-int4", "knowmem_forget").excess).value == pytest.approx(0.859, abs=0.001)
    assert known(metric(judgement, "rtn-int4", "verbmem").excess).value == pytest.approx(0.925, abs=0.001)


def test_what_the_quantized_original_lost_can_still_be_told_to_have_come_back() -> None:
    """BOOKS GA_GDR: KnowMem 2.9 to 33.7, a retrained model 28.9; the original at 4 bits has only 36.8."""
    judgement = published.judged(rows(PAPER, "books", "GA_GDR"))
    found = metric(judgement, "rtn-int4", "knowmem_forget")
    assert (found.outcome, found.recovery) == ("recovered", None)
    assert {"original_lost_it", "knowledge_returned"} <= {r.code for r in at(judgement, "rtn-int4").reasons}


def test_a_model_broken_in_full_precision_that_knows_again_at_4_bits_is_recovered_there() -> None:
    judgement = published.judged(rows(PAPER, "news", "GA_KLR"))
    assert known(at(judgement, "full").utility).value == pytest.approx(0.42, abs=0.005)
    assert {reason.precision for reason in judgement.reasons} == {"rtn-int4"}
    assert "broken_in_full_precision" in {reason.code for reason in judgement.reasons}


@pytest.mark.parametrize(("model", "expected"), [("books_target", -57.111), ("books_ga_klr", -37.901)])
def test_privleak_of_two_published_7b_models_comes_out(model: str, expected: float) -> None:
    if not REFERENCE_SCORES.exists():
        pytest.skip("the reference scores lie beside the project, not in it")
    found = json.loads(REFERENCE_SCORES.read_text())[model]
    forget, holdout = (np.array(found["min40"][subset]) for subset in ("forget", "holdout"))
    value = auc(forget, holdout, np.full(len(forget), True), np.full(len(holdout), True)).value
    assert 100 * (value - 0.5393) / 0.5393 == pytest.approx(expected, abs=0.01)
