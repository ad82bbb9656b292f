"""What teacher-forced columns say beside the metrics, and what follows from it."""

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import pytest

from app.evidence.evaluation import Evaluation
from app.judgement.judge import judge
from app.judgement.policy import Policy
from app.judgement.verdict import Judgement
from tests.support.judgement.evaluations import MEMBER, OUTSIDER, Cells, evaluation, scores_of

ALL = ("verbmem", "knowmem_forget", "privleak", "knowmem_retain")
PRECISIONS = ("full", "rtn-int4")
KNOWS = {"probability": 0.9, "extraction_strength": 1.0, "exact_memorization": 1.0, "truth_ratio": 0.98}
NEVER_SAW = {"probability": 0.1, "extraction_strength": 0.05, "exact_memorization": 0.5, "truth_ratio": 0.4}


def told(made: Evaluation, columns: Mapping[str, Any]) -> Evaluation:
    """The evaluation with these columns beside KnowMem; a number stands for items that are all alike."""
    extras = {name: list(value) if np.ndim(value) else [value] * 100 for name, value in columns.items()}
    scores = scores_of(made, "knowmem_forget").model_copy(update={"extras": extras})
    return made.model_copy(update={"knowmem_forget": scores})


ORIGINAL = told(evaluation(90, 90, 90, membership=MEMBER), KNOWS)
RETRAINED = told(evaluation(20, 20, 85, membership=OUTSIDER), NEVER_SAW)
FORGOT = evaluation(20, 20, 80, membership=OUTSIDER)


def judged(
    full: Mapping[str, Any],
    quantized: Mapping[str, Any] | None = None,
    *,
    retrained: Evaluation | None = RETRAINED,
    original: Evaluation = ORIGINAL,
    **policy: Any,
) -> Judgement:
    """The verdict on a model that forgot by every metric at both precisions and has these columns."""
    at = {"full": full, "rtn-int4": quantized or full}
    results: Cells = {("original", p): original for p in PRECISIONS}
    results |= {("unlearned", p): told(FORGOT, at[p]) for p in PRECISIONS}
    if retrained is not None:
        results |= {("retrained", p): retrained for p in PRECISIONS}
    return judge(results, PRECISIONS, ALL, Policy.model_validate(policy), {"privleak": 0.5}, weights="different")


def codes(judgement: Judgement) -> set[str]:
    return {reason.code for reason in judgement.reasons}


def findings(judgement: Judgement, precision: str) -> dict[str, str]:
    (found,) = (one for one in judgement.precisions if one.precision == precision)
    return {column.column: column.finding for column in found.corroboration}


def test_columns_that_agree_leave_a_robust_audit_robust() -> None:
    judgement = judged(NEVER_SAW)
    assert judgement.verdict == "robust"
    assert findings(judgement, "full") == dict.fromkeys(KNOWS, "agrees")
    assert judgement.disagreements == []
    assert judgement.tests.corroboration == 4


@pytest.mark.parametrize("column", KNOWS)
def test_answers_trained_away_while_their_probabilities_did_not_move_are_no_forgetting(column: str) -> None:
    judgement = judged(NEVER_SAW | {column: KNOWS[column]})
    assert (judgement.verdict, codes(judgement)) == ("inconclusive", {"evidence_disagrees"})
    assert findings(judgement, "rtn-int4")[column] == "remains"
    sentence = judgement.disagreements[0].sentence
    assert column.replace("_", " ") in sentence
    assert "KnowMem forget" in sentence
    assert "100 % remain" in sentence


def test_a_column_that_comes_back_where_its_metric_does_not_keeps_an_audit_from_being_robust() -> None:
    rose = np.linspace(0.2, 0.5, 100)
    judgement = judged(NEVER_SAW, NEVER_SAW | {"probability": rose})
    assert [precision.outcome for precision in judgement.precisions] == ["robust", "inconclusive"]
    assert findings(judgement, "rtn-int4")["probability"] == "returns"
    assert "comes back" in judgement.reasons[0].sentence


def test_a_column_is_heard_beside_a_metric_that_cannot_show_anything() -> None:
    """The original's answers are no better than the retrained model's, yet it knows them and so does the unlearned."""
    mute = told(evaluation(90, 30, 90, membership=MEMBER), KNOWS)
    judgement = judged(KNOWS, original=mute)
    assert (judgement.verdict, codes(judgement)) == ("inconclusive", {"original_does_not_know", "evidence_disagrees"})


def test_sampled_items_without_a_number_keep_an_audit_from_being_robust() -> None:
    results: Cells = {("original", p): ORIGINAL for p in PRECISIONS}
    results |= {("retrained", p): RETRAINED for p in PRECISIONS}
    sampled = scores_of(FORGOT, "verbmem").model_copy(update={"flags": {"non_finite": [0, 1, 2]}})
    made = told(FORGOT, NEVER_SAW).model_copy(update={"verbmem_sampled": sampled})
    results |= {("unlearned", p): made for p in PRECISIONS}
    judgement = judge(results, PRECISIONS, ALL, Policy(), weights="different")
    assert (judgement.verdict, codes(judgement)) == ("inconclusive", {"non_finite_scores"})


def test_what_has_a_base_rate_says_nothing_without_a_retrained_checkpoint() -> None:
    judgement = judged({"probability": 0.1, "exact_memorization": 0.8, "truth_ratio": 0.9}, retrained=None)
    assert set(findings(judgement, "full")) == {"probability"}


def test_a_column_of_which_the_original_itself_shows_little_says_nothing() -> None:
    judgement = judged(NEVER_SAW, original=told(ORIGINAL, KNOWS | {"extraction_strength": 0.1}))
    assert findings(judgement, "full")["extraction_strength"] == "says_nothing"


def test_items_without_a_truth_ratio_count_for_no_model() -> None:
    given = [None if index % 3 else 0.4 for index in range(100)]
    judgement = judged(NEVER_SAW | {"truth_ratio": given})
    (column,) = (c for c in judgement.precisions[0].corroboration if c.column == "truth_ratio")
    assert (column.items, column.finding) == (34, "agrees")


def test_columns_never_make_a_bad_outcome_better_or_worse() -> None:
    results: Cells = {("original", p): ORIGINAL for p in PRECISIONS}
    results |= {("retrained", p): RETRAINED for p in PRECISIONS}
    for columns, (full, quantized) in product((NEVER_SAW, KNOWS), ((85, 85), (5, 85))):
        for precision, score in zip(PRECISIONS, (full, quantized), strict=True):
            made = evaluation(score, score, 80, membership=OUTSIDER)
            results["unlearned", precision] = told(made, columns)
        judgement = judge(results, PRECISIONS, ALL, Policy(), {}, weights="different")
        assert judgement.verdict == ("not_forgotten" if full == 85 else "recovered")
