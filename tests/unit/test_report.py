"""Reports: what they hold, that they can be judged again, and what people see of them."""

import json

import pytest
from rich.console import Console

from app.errors import InvalidRequest
from app.plans import check_names, fit
from app.reports import techniques, terminal
from app.reports.policy import Policy, read_policy
from app.reports.render import markdown
from app.reports.report import Evidence, Plan, Report, digest, make_report, references
from app.reports.schemas import CheckpointInfo, ForgetSetInfo
from app.reports.table import rows
from app.reports.verdict import Failure, judge
from tests.evaluations import AUDIT, evaluation

PLAN = Plan(precisions=["full", "rtn-int4"], metrics=["verbmem", "knowmem_forget", "knowmem_retain"])
CHECKPOINT = CheckpointInfo(uri="/m", digest="sha256:0", architecture="LlamaForCausalLM", parameters=1, dtype="BF16")
FORGET_SET = ForgetSetInfo(
    digest="sha256:1", counts={"knowmem/forget_qa": 100}, unavailable={"privleak": "privleak/holdout.json is missing"}
)


def report_on(unlearned_at_4_bits, **changes) -> Report:
    cells = {
        ("original", "full"): evaluation(90, 90, 90),
        ("original", "rtn-int4"): evaluation(90, 90, 90),
        ("unlearned", "full"): evaluation(10, 10, 80),
        ("unlearned", "rtn-int4"): unlearned_at_4_bits,
    }
    evidence = [
        Evidence(role=role, precision=precision, failure=found)
        if isinstance(found, Failure)
        else Evidence(role=role, precision=precision, evaluation=found)
        for (role, precision), found in cells.items()
    ]
    given = {
        "checkpoints": {"original": CHECKPOINT, "unlearned": CHECKPOINT},
        "forget_set": FORGET_SET,
        "plan": PLAN,
        "policy": Policy(resamples=200),
    }
    return make_report(AUDIT, evidence=evidence, **(given | changes))


def test_what_is_retained_is_tabled_by_technique_and_bits():
    names = ["full", "rtn-int8", "rtn-int4", "gptq-int4-g32", "gptq-int4-g32@retain", "gguf-q4_0", "bnb-nf4-dq"]
    kept = dict(zip(names, (10, 11, 81, 12, 13, 14, 15), strict=True))
    evidence = [
        Evidence(role=role, precision=name, evaluation=evaluation(*scores, precision=name))
        for name in names
        for role, scores in (("original", (100, 100, 100)), ("unlearned", (kept[name], 50, 90)))
    ]
    plan = Plan(precisions=names, metrics=PLAN.metrics)
    report = make_report(
        AUDIT, {"original": CHECKPOINT, "unlearned": CHECKPOINT}, FORGET_SET, plan, Policy(resamples=200), evidence
    )
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


def test_a_report_can_be_judged_again_from_its_own_evidence():
    report = report_on(evaluation(80, 80, 80))
    read = Report.model_validate_json(report.canonical())
    again = judge(
        {(e.role, e.precision): e.result for e in read.evidence},
        read.plan.precisions,
        read.plan.metrics,
        read.policy,
        references(read.forget_set),
    )
    assert read.verdict == again.verdict == "recovered"
    assert again.precisions == read.precisions


def test_the_same_report_has_the_same_bytes():
    report = report_on(evaluation(80, 80, 80))
    assert digest(report.canonical()) == digest(Report.model_validate_json(report.canonical()).canonical())


def test_a_report_says_what_was_not_tested():
    said = "\n".join(report_on(evaluation(80, 80, 80)).not_tested)
    assert "privleak/holdout.json is missing" in said
    assert "No retrained checkpoint" in said
    assert "bnb-nf4" in said
    assert "paraphrases" in said


def test_markdown_shows_the_verdict_the_scores_the_failure_and_the_policy():
    shown = markdown(report_on(Failure(code="not_quantized", detail="half of the | modules were left")))
    assert "INCONCLUSIVE" in shown.splitlines()[0]
    assert "`not_quantized`" in shown
    assert "half of the \\| modules" in shown
    assert Policy(resamples=200).digest() in shown


def test_the_table_has_a_row_for_each_metric_and_the_outcome_of_each_precision():
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


def test_a_plan_gets_full_precision_and_loses_doubles():
    plan = check_names(["rtn-int4", "rtn-int4"], ["knowmem_retain", "verbmem"])
    assert plan.precisions == ["full", "rtn-int4"]
    assert plan.metrics == ["verbmem", "knowmem_retain"]


@pytest.mark.parametrize(
    ("precisions", "metrics", "code"),
    [
        (["rtn-int5"], ["verbmem"], "unknown_precision"),
        (["full"], ["memverb"], "unknown_metric"),
        (["full"], [], "nothing_to_measure"),
    ],
)
def test_a_plan_with_names_that_do_not_exist_is_refused(precisions, metrics, code):
    with pytest.raises(InvalidRequest) as error:
        check_names(precisions, metrics)
    assert error.value.code == code


def test_a_plan_whose_metrics_the_forget_set_lacks_is_refused_with_the_reason():
    with pytest.raises(InvalidRequest) as error:
        fit(check_names(["full"], ["verbmem"]), {"verbmem": "verbmem/forget.json is missing"})
    assert error.value.code == "nothing_to_measure"
    assert "verbmem/forget.json is missing" in error.value.detail


def test_a_policy_file_names_only_what_differs(tmp_path):
    file = tmp_path / "policy.json"
    file.write_text(json.dumps({"recovery_margin": 0.05}))
    assert read_policy(file) == Policy(recovery_margin=0.05)


@pytest.mark.parametrize("text", ["{", '{"recovery_margins": 1}', '{"recovery_margin": 7}'])
def test_a_policy_file_that_is_wrong_is_refused_with_file_and_field(tmp_path, text):
    file = tmp_path / "policy.json"
    file.write_text(text)
    with pytest.raises(InvalidRequest) as error:
        read_policy(file)
    assert error.value.errors
    assert error.value.errors[0].file == str(file)


def test_flagged_items_are_counted_for_people_too():
    flagged = evaluation(80, 80, 80)
    scores = flagged.verbmem.model_copy(update={"flags": {"prompt_truncated": [3, 4]}})
    shown = markdown(report_on(flagged.model_copy(update={"verbmem": scores})))
    assert "unlearned, rtn-int4, VerbMem: prompt_truncated 2" in shown


def test_a_name_with_markup_is_shown_as_it_is(capsys):
    report = report_on(evaluation(80, 80, 80))
    named = report.model_copy(update={"audit": AUDIT.model_copy(update={"name": "[/] [red]x"})})
    terminal.show(Console(width=300), named)
    assert "[/] [red]x" in capsys.readouterr().out


def test_an_empty_plan_is_refused():
    with pytest.raises(InvalidRequest):
        check_names([], ["verbmem"])
