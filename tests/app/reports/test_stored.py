"""Reading stored reports: what of a file is refused, so that nothing is judged that was not measured together."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from app.canonical import sha256
from app.errors import ReportRefused
from app.reports.model import AuditReport
from app.reports.rendering.markdown import markdown
from app.reports.stored import parse
from tests.support.places import REPORTS

MUSE_2 = REPORTS / "muse-2.json"
Edit = Callable[[Any], None]


def edited(edit: Edit, name: str = "muse-2") -> bytes:
    content = json.loads((REPORTS / f"{name}.json").read_bytes())
    edit(content)
    return json.dumps(content).encode()


def _cut_scores(report: Any) -> None:
    report["evidence"][1]["evaluation"]["verbmem"]["scores"].pop()


def _cut_texts(report: Any) -> None:
    del report["evidence"][0]["evaluation"]["privleak"]["forget"]["min_k"]["40"][0]


def _cut_a_whole_metric_item(report: Any) -> None:
    scores = report["evidence"][3]["evaluation"]["knowmem_forget"]
    for column in (scores["scores"], *scores["extras"].values()):
        column.pop()


def _repeat(report: Any) -> None:
    report["evidence"].append(deepcopy(report["evidence"][0]))


def _drop(report: Any) -> None:
    report["evidence"].pop()


def _drop_from_the_plan(report: Any) -> None:
    report["plan"]["precisions"].remove("rtn-int4")


def _score_too_much(report: Any) -> None:
    report["evidence"][0]["evaluation"]["verbmem"]["scores"][0] = 7.0


def _flag_nothing(report: Any) -> None:
    report["evidence"][0]["evaluation"]["verbmem"]["flags"]["non_finite"] = [1000]


def _no_full(report: Any) -> None:
    report["plan"]["precisions"] = ["rtn-int4"]


@pytest.mark.parametrize(
    "edit",
    [
        _cut_scores, _cut_texts, _cut_a_whole_metric_item, _repeat, _drop, _drop_from_the_plan, _score_too_much,
        _flag_nothing, _no_full,
    ],
)  # fmt: skip
def test_a_report_whose_parts_do_not_fit_together_is_refused(edit: Edit) -> None:
    with pytest.raises(ReportRefused, match="fetch it again") as refused:
        parse(edited(edit))
    assert refused.value.code == "report_inconsistent"
    assert refused.value.errors


def _other_schema(report: Any) -> None:
    report["schema"] = "lethe-report-9"


def _no_schema(report: Any) -> None:
    del report["schema"]


def _no_evidence(report: Any) -> None:
    del report["evidence"]


def _later_field(report: Any) -> None:
    report["evidence"][0]["evaluation"]["from_the_future"] = 1


def _words_for_scores(report: Any) -> None:
    report["evidence"][0]["evaluation"]["verbmem"]["scores"][0] = "one"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (_other_schema, "lethe-report-9"),
        (_no_schema, "names no schema"),
        (_no_evidence, "evidence"),
        (_later_field, "evidence.0.evaluation.from_the_future"),
        (_words_for_scores, "evidence.0.evaluation.verbmem"),
    ],
)
def test_what_is_no_report_of_a_version_that_is_known_is_refused(edit: Edit, said: str) -> None:
    with pytest.raises(ReportRefused) as refused:
        parse(edited(edit))
    assert refused.value.code == "report_malformed"
    assert said in refused.value.detail


@pytest.mark.parametrize(
    "content",
    [
        b"# Audit native: ROBUST", b"", b"[1]", b"null", b'{"schema": NaN}', b'{"schema": 1, "schema": 2}',
        b"\xff\xfe\x00",
        b"[" * 100_000, b'{"a": 1e999}', b'{"a": 123456789012345678901234567890}', b'{"a": "\\ud800"}',
    ],
)  # fmt: skip
def test_what_is_not_the_json_of_a_report_is_refused(content: bytes) -> None:
    with pytest.raises(ReportRefused) as refused:
        parse(content)
    assert refused.value.code == "report_malformed"


def _artifact_unnamed(report: Any) -> None:
    report["artifacts"] = []


def _artifact_twice(report: Any) -> None:
    report["artifacts"] *= 2


def _only_of_the_original(report: Any) -> None:
    report["artifacts"][0]["of"] = "original"


@pytest.mark.parametrize("edit", [_artifact_unnamed, _artifact_twice, _only_of_the_original])
def test_artifacts_that_do_not_fit_the_plan_are_refused(edit: Edit) -> None:
    with pytest.raises(ReportRefused) as refused:
        parse(edited(edit, "muse-1-with-an-artifact"))
    assert refused.value.code == "report_inconsistent"


@pytest.mark.parametrize("file", sorted(REPORTS.glob("*.json")), ids=lambda file: file.stem)
def test_reports_of_earlier_versions_are_still_read_and_rendered(file: Path) -> None:
    body = file.read_bytes()
    earlier, parsed = AuditReport.model_validate_json(body), parse(body)
    assert (parsed.digest, parsed.policy_digest) == (sha256(body), json.loads(body)["policy_digest"])
    assert parsed.evidence == earlier.evidence
    assert earlier.verdict.upper() in markdown(earlier)


def test_what_was_concluded_is_not_read() -> None:
    def conclude_otherwise(report: Any) -> None:
        report |= {"verdict": "robust", "reasons": "none", "precisions": 7, "policy": {"of another time": 1}}
        del report["sentence"]

    assert parse(edited(conclude_otherwise)).evidence == parse(MUSE_2.read_bytes()).evidence
