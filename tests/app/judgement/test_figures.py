"""How scores and shares are written."""

from math import inf

from app.judgement import figures
from app.judgement.statistics.intervals import Estimate

WIDE = Estimate(value=0.123, low=-0.041, high=0.287)
BARE = Estimate(value=0.123, low=None, high=None)


def test_a_share_is_written_in_percent_and_a_missing_one_as_a_dash() -> None:
    assert figures.percent(0.4166) == "41.7 %"
    assert figures.whole_percent(WIDE) == "12 %"
    assert figures.hundredfold(WIDE) == "12"
    assert (
        figures.percent(None) == figures.whole_percent(None) == figures.hundredfold(None) == figures.score(None) == "–"
    )


def test_a_confidence_keeps_the_digits_that_it_has() -> None:
    assert [figures.level(share) for share in (0.95, 0.995, 0.9)] == ["95 %", "99.5 %", "90 %"]


def test_a_difference_is_written_in_points_with_its_sign_and_its_interval() -> None:
    assert figures.points(-0.0512) == "-5.1"
    assert figures.span(WIDE) == "+12.3 (-4.1 to +28.7)"
    assert figures.span(BARE) == "+12.3 (no interval)"
    assert figures.narrow_span(WIDE) == "+12 [-4, +29]"
    assert (figures.narrow_span(BARE), figures.narrow_span(None)) == ("+12", "")
    assert figures.excluding(WIDE, 0.05) == "+12 [-4, +29] <5"
    assert figures.excluding(WIDE, None) == "+12 [-4, +29]"
    assert figures.points_or_any(0.123) == "12.3"
    assert figures.points_or_any(inf) == "any size"


def test_a_value_of_any_scale_is_written_with_its_interval() -> None:
    assert figures.interval(WIDE, 100, 1) == "12.3 (-4.1 to 28.7)"
    assert figures.interval(BARE, 1, 2) == "0.12"
    assert figures.interval(None, 1, 2) == "not measured"


def test_an_auc_stands_beside_its_score() -> None:
    assert figures.score_with_auc(41.66, None) == "41.7"
    assert figures.score_with_auc(41.66, 0.512) == "41.7 (AUC 0.51)"
    assert figures.score_with_auc(None, 0.512) == "AUC 0.51"
    assert figures.score_with_auc(None, None) == "–"
