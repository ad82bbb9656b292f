"""Reports: what they hold, that they can be judged again, and what people see of them."""

from typing import Any

import pytest
from rich.console import Console

from app.canonical import sha256
from app.catalog.plans import Plan
from app.evidence.diagnosis import Diagnosis, OtherPart
from app.evidence.evaluation import CheckpointInfo, Evaluation, ForgetSetInfo, GenerationScores
from app.judgement import weights
from app.judgement.alarms import Alarm
from app.judgement.judge import judge
from app.judgement.policy import Policy
from app.judgement.verdict import Failure, Results
from app.reports.model import AuditReport, Evidence, make_report, references
from app.reports.rendering import techniques, terminal
from app.reports.rendering.markdown import markdown
from app.reports.rendering.table import rows
from tests.support.judgement.evaluations import (
    AUDIT,
    MEMBER,
    OUTSIDER,
    PAIR,
    Cells,
    diagnosis,
    evaluation,
    knowing,
    scores_of,
)

PLAN = Plan(precisions=["full", "rtn-int4"], metrics=["verbmem", "knowmem_forget", "knowmem_retain"])
CHECKPOINT = CheckpointInfo(uri="/m", digest="sha256:0", architecture="LlamaForCausalLM", parameters=1, dtype="BF16")
FORGET_SET = ForgetSetInfo(
    digest="sha256:1", counts={"knowmem/forget_qa": 100}, unavailable={"privleak": "privleak/holdout.json is missing"}
)


def report_on(unlearned_at_4_bits: Evaluation | Failure, **changes: Any) -> AuditReport:
    cells: Cells = {
        ("original", "full"): evaluation(90, 90, 90, membership=MEMBER),
        ("original", "rtn-int4"): evaluation(90, 90, 90, membership=MEMBER),
        ("unlearned", "full"): evaluation(10, 10, 80, membership=OUTSIDER),
        ("unlearned", "rtn-int4"): unlearned_at_4_bits,
    }
    evidence = [
        Evidence(role=role, precision=precision, failure=found)
        if isinstance(found, Failure)
        else Evidence(role=role, precision=precision, evaluation=found)
        for (role, precision), found in cells.items()
    ]
    given: dict[str, Any] = {
        "checkpoints": {"original": CHECKPOINT, "unlearned": CHECKPOINT},
        "forget_set": FORGET_SET,
        "plan": PLAN,
        "policy": Policy(),
        "diagnosis": diagnosis(),
    }
    return make_report(AUDIT, evidence=evidence, **(given | changes))


def test_what_is_retained_is_tabled_by_technique_and_bits() -> None:
    names = ["full", "rtn-int8", "rtn-int4", "gptq-int4-g32", "gptq-int4-g32@retain", "gguf-q4_0", "bnb-nf4-dq"]
    kept = dict(zip(names, (10, 11, 81, 12, 13, 14, 15), strict=True))
    evidence = [
        Evidence(role=role, precision=name, evaluation=evaluation(*scores, precision=name))
        for name in names
        for role, scores in zip(PAIR, ((100, 100, 100), (kept[name], 50, 90)), strict=True)
    ]
    plan = Plan(precisions=names, metrics=PLAN.metrics)
    report = make_report(AUDIT, {"original": CHECKPOINT, "unlearned": CHECKPOINT}, FORGET_SET, plan, Policy(), evidence)
    expected = [
        ("full", "10 / 50", "", ""),
        ("rtn", "", "11 / 50", "81 / 50"),
        ("gptq-g32", "", "", "12 / 50"),
        ("gptq-g32@retain", "", "", "13 / 50"),
        ("gguf", "", "", "14 / 50"),
        ("bnb-nf4-dq", "", "", "15 / 50"),
    ]
    assert techniques.table(report) == (("technique", "full", "8 bits", "4 bits"), expected)
    assert "VerbMem / KnowMem" in techniques.caption(report)
    assert "0 of 12 quantized evaluations are proven" in techniques.caption(report)
    console = Console(width=60, record=True)
    terminal.show(console, report)
    assert "retained, by technique and bits" in console.export_text()
    assert "| gptq-g32@retain |  |  | 13 / 50 |" in markdown(report)
    assert techniques.table(report_on(evaluation(80, 80, 80))) is None


def test_a_report_can_be_judged_again_from_its_own_evidence() -> None:
    report = report_on(evaluation(80, 80, 80))
    read = AuditReport.model_validate_json(report.canonical())
    results = {(e.role, e.precision): e.result for e in read.evidence}
    again = judge(
        results,
        read.plan.precisions,
        read.plan.metrics,
        read.policy,
        references(read.forget_set),
        weights=weights.compare(read.diagnosis, results, read.policy),
    )
    assert read.verdict == again.verdict == "recovered"
    assert again.precisions == read.precisions


def test_the_same_report_has_the_same_bytes() -> None:
    report = report_on(evaluation(80, 80, 80))
    assert sha256(report.canonical()) == sha256(AuditReport.model_validate_json(report.canonical()).canonical())


def test_a_report_says_what_was_not_tested() -> None:
    said = "\n".join(report_on(evaluation(80, 80, 80)).not_tested)
    assert "privleak/holdout.json is missing" in said
    assert "No retrained checkpoint" in said
    assert "bnb-nf4" in said
    assert "paraphrases" in said
    assert "llama.cpp's files (GGUF) and EXL2 quantize some" in said


def test_markdown_shows_the_verdict_the_scores_the_failure_and_the_policy() -> None:
    shown = markdown(report_on(Failure(code="not_quantized", detail="half of the | modules were left")))
    assert "INCONCLUSIVE" in shown.splitlines()[0]
    assert "`not_quantized`" in shown
    assert "half of the \\| modules" in shown
    assert Policy().digest() in shown


def test_the_table_has_a_row_for_each_metric_and_the_outcome_of_each_precision() -> None:
    found = rows(report_on(evaluation(80, 80, 80)))
    assert [(row.precision, row.metric, row.outcome) for row in found] == [
        ("full", "VerbMem", "robust"),
        ("full", "KnowMem forget", "robust"),
        ("full", "KnowMem retain", "utility"),
        ("full", "all", "ROBUST"),
        ("rtn-int4", "VerbMem", "recovered"),
        ("rtn-int4", "KnowMem forget", "recovered"),
        ("rtn-int4", "KnowMem retain", "utility"),
        ("rtn-int4", "all", "RECOVERED"),
    ]


def test_flagged_items_are_counted_for_people_too() -> None:
    flagged = evaluation(80, 80, 80)
    scores = scores_of(flagged, "verbmem").model_copy(update={"flags": {"prompt_truncated": [3, 4]}})
    shown = markdown(report_on(flagged.model_copy(update={"verbmem": scores})))
    assert "unlearned, rtn-int4, VerbMem: prompt_truncated 2" in shown


def test_a_name_with_markup_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_on(evaluation(80, 80, 80))
    named = report.model_copy(update={"audit": AUDIT.model_copy(update={"name": "[/] [red]x"})})
    terminal.show(Console(width=300), named)
    assert "[/] [red]x" in capsys.readouterr().out


ROBUST = evaluation(12, 12, 80, membership=OUTSIDER)


def shown_by(report: AuditReport) -> tuple[str, str]:
    """As markdown, and on a terminal."""
    console = Console(width=200, record=True)
    terminal.show(console, report)
    return markdown(report), console.export_text()


def test_a_pair_that_forgot_and_whose_weights_differ_is_robust_and_raises_no_alarm() -> None:
    report = report_on(ROBUST)
    assert (report.verdict, report.alarms) == ("robust", [])
    assert all("alarm" not in text.lower() for text in shown_by(report))


@pytest.mark.parametrize("found", [None, Failure(code="engine_error", detail="no memory")])
def test_without_a_diagnosis_no_report_says_robust(found: Failure | None) -> None:
    report = report_on(ROBUST, diagnosis=found)
    assert (report.verdict, [reason.code for reason in report.reasons]) == ("inconclusive", ["weights_not_compared"])


def test_scores_that_differ_though_the_weights_are_the_same_raise_an_alarm_below_the_verdict() -> None:
    report = report_on(ROBUST, diagnosis=diagnosis(identical=True, changed=0))
    assert report.verdict == "not_forgotten"
    assert [alarm.code for alarm in report.alarms] == ["scores_of_same_weights_differ"]
    assert "VerbMem at 100 of 100 items" in report.alarms[0].sentence
    assert "PrivLeak at 40 of 80 items" in report.alarms[0].sentence
    for text in shown_by(report):
        verdict, alarm, reason = (
            text.index(said) for said in ("keeps more of the forget set than", "ALARM", "value for value")
        )
        assert verdict < alarm < reason
    assert AuditReport.model_validate_json(report.canonical()) == report


def test_the_same_scores_of_the_same_weights_raise_none() -> None:
    original = evaluation(90, 90, 90, membership=MEMBER)
    nearly = knowing(original, (MEMBER[0] + 1e-5, MEMBER[1]))
    cells = zip(PAIR, (original, nearly), strict=True)
    evidence = [Evidence(role=role, precision="full", evaluation=found) for role, found in cells]
    report = make_report(
        AUDIT, {}, FORGET_SET, Plan(precisions=["full"], metrics=PLAN.metrics), Policy(), evidence,
        diagnosis(identical=True, changed=0),
    )  # fmt: skip
    assert (report.verdict, report.alarms) == ("not_forgotten", [])


def test_alarms_of_others_come_first() -> None:
    given = Alarm(code="configs_differ", sentence="The roles' configs differ in rope_theta | allowed by the policy.")
    report = report_on(ROBUST, alarms=[given], diagnosis=diagnosis(identical=True, changed=0))
    assert [alarm.code for alarm in report.alarms] == ["configs_differ", "scores_of_same_weights_differ"]
    assert "rope_theta \\| allowed" in markdown(report)


def test_equal_digests_of_the_tensors_are_the_same_weights_whatever_the_diagnosis_says() -> None:
    def with_tensors(digest: str | None) -> str:
        made = evaluation(10, 10, 80, tensors=digest)
        results: Results = {("original", "full"): tensors, ("unlearned", "full"): made}
        return weights.compare(diagnosis(), results, Policy())

    tensors = evaluation(90, 90, 90, tensors="sha256:a")
    assert with_tensors("sha256:a") == "same"
    assert with_tensors("sha256:b") == with_tensors(None) == "different"


def changed_rows(largest: float | None) -> OtherPart:
    return OtherPart(
        name="lm_head", parameters=8, changed=0.0002, changed_rows=0.0002, largest_row_update=largest, update=1,
        relative_update=0.014, non_finite=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (diagnosis(identical=True, changed=0), "same"),
        (diagnosis(identical=False, changed=0), "only_unquantized"),
        (diagnosis(identical=None), "different"),
        (diagnosis(others=[changed_rows(0.75)]), "different"),
        (diagnosis(others=[changed_rows(0.76)]), "rows_replaced"),
        (diagnosis(others=[changed_rows(None)]), "rows_replaced"),
        # It looked at decoder linears alone.
        (diagnosis(identical=None, changed=0), "not_compared"),
    ],
)
def test_what_a_diagnosis_says_of_the_weights(found: Diagnosis, expected: str) -> None:
    assert weights.compare(found, {}, Policy()) == expected


def test_a_report_says_in_a_sentence_what_changed_of_all_that_stays_unquantized() -> None:
    zeroed = changed_rows(1.0)
    markdown_text, terminal_text = shown_by(report_on(ROBUST, diagnosis=diagnosis(changed=0, others=[zeroed])))
    said = (
        "No weight of a decoder linear differs between the two models. lm_head changed too: 0.02 % of its rows, by "
        "0.014 of its norm; one row by 1 of its own."
    )
    for text in (markdown_text, terminal_text):
        assert said in text


def test_a_metric_that_the_forget_set_lacks_stays_in_the_plan_and_is_missed() -> None:
    plan = Plan(precisions=PLAN.precisions, metrics=["verbmem", "knowmem_forget", "privleak", "knowmem_retain"])
    bare = {role: evaluation(*scores) for role, scores in zip(PAIR, ((90, 90, 90), (10, 10, 80)), strict=True)}
    evidence = [
        Evidence(role=role, precision=p, evaluation=found) for role, found in bare.items() for p in PLAN.precisions
    ]
    checkpoints = dict.fromkeys(PAIR, CHECKPOINT)
    report = make_report(AUDIT, checkpoints, FORGET_SET, plan, Policy(), evidence, diagnosis())
    assert report.verdict == "inconclusive"
    assert report.plan.metrics == plan.metrics
    assert "metric_missing" in {reason.code for reason in report.reasons}


def test_repeated_items_are_shown_beside_their_count() -> None:
    copied = FORGET_SET.model_copy(update={"duplicates": {"knowmem/forget_qa": [3, 4]}})
    assert "knowmem/forget_qa 100 (2 repeat others and do not count)" in markdown(report_on(ROBUST, forget_set=copied))


def test_a_sampled_metric_is_shown_with_its_flags_and_decides_nothing_alone() -> None:
    plan = Plan(precisions=PLAN.precisions, metrics=[*PLAN.metrics, "verbmem_sampled"])
    sampled = GenerationScores(scores=[0.9] * 100, flags={"non_finite": [3]}, extras={"best_of_k": [1.0] * 100})
    reports = []
    for found in (None, sampled):
        evidence = [
            Evidence(
                role=role, precision=p, evaluation=evaluation(*scores).model_copy(update={"verbmem_sampled": found})
            )
            for role, scores in zip(PAIR, ((90, 90, 90), (10, 10, 80)), strict=True)
            for p in PLAN.precisions
        ]
        checkpoints = dict.fromkeys(PAIR, CHECKPOINT)
        reports.append(make_report(AUDIT, checkpoints, FORGET_SET, plan, Policy(), evidence, diagnosis()))
    without, shown = reports
    assert shown.verdict == without.verdict
    assert "VerbMem sampled: non_finite 1" in markdown(shown)
    terminal.show(Console(width=80, record=True), shown)
    read = AuditReport.model_validate_json(shown.canonical())
    assert scores_of(read.evidence[0].evaluation, "verbmem_sampled") == sampled


def test_an_evaluation_that_an_earlier_version_stored_is_still_read() -> None:
    stored = evaluation(90, 80, 70).model_dump(mode="json")
    del stored["verbmem_sampled"]
    stored["engine"]["suite"] = "muse-2"
    stored["verbmem"]["extras"] = {"exact_memorization": [0.5] * 100, "extraction_strength": [0.25] * 100}
    read = Evaluation.model_validate(stored)
    assert read.scores("verbmem_sampled") is None
    assert read.engine.suite == "muse-2"
    assert scores_of(read, "verbmem").extras["extraction_strength"][0] == 0.25
    assert scores_of(read, "knowmem_forget").extras == {}
