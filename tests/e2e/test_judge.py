"""`lethe report judge` and `lethe audit judge`: stored scores judged again, by the command as it is installed."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.canonical import sha256
from app.judgement.policy import Policy
from app.reports.model import AuditReport
from tests.support.commands import lethe
from tests.support.places import REPORTS

MUSE_2 = REPORTS / "muse-2.json"
"""Robust but for ten texts of PrivLeak, where the policy asks for twenty."""
LENIENT = {"may_be_missing": ["privleak"]}


def judge(report: Path, *args: object, policy: dict[str, Any] | None = None, folder: Path | None = None) -> Any:
    given: list[object] = [*args]
    if policy is not None:
        assert folder is not None
        (folder / "policy.json").write_text(json.dumps(policy))
        given += ["--policy", folder / "policy.json"]
    return lethe("report", "judge", report, *given)


@pytest.mark.parametrize(("name", "verdict"), [("muse-1-first", 1), ("muse-1-with-an-artifact", 2), ("muse-2", 2)])
def test_reports_of_earlier_versions_are_judged_by_todays_rules(tmp_path: Path, name: str, verdict: int) -> None:
    earlier = REPORTS / f"{name}.json"
    before = earlier.read_bytes()
    done = judge(earlier, "--out", tmp_path / "new.json")
    assert done.returncode == verdict, done.stderr
    assert done.stderr.splitlines()[0] == f"policy: {Policy().digest()}"
    assert earlier.read_bytes() == before
    written = json.loads(before)
    body = (tmp_path / "new.json").read_bytes()
    made = AuditReport.model_validate_json(body)
    assert made.canonical() == body
    assert made.judged_again is not None
    assert made.judged_again.model_dump() == {
        "report": sha256(before),
        "audit": None,
        "lethe": written["lethe"],
        "policy_digest": written["policy_digest"],
    }
    assert (made.policy, made.audit.name) == (Policy(), written["audit"]["name"])
    assert "signature was not checked" in made.notes[1]
    assert "signature was not checked" in " ".join(done.stdout.split())


def test_another_policy_gives_another_verdict_and_exit_code(tmp_path: Path) -> None:
    codes = {}
    for verdict, policy in (
        ("robust", LENIENT),
        ("collapsed", LENIENT | {"utility_floor": 1.0}),
        ("inconclusive", {"min_items": 1000}),
    ):
        done = judge(MUSE_2, "--out", tmp_path / "new.json", policy=policy, folder=tmp_path)
        made = AuditReport.model_validate_json((tmp_path / "new.json").read_bytes())
        codes[made.verdict] = done.returncode
        assert made.verdict == verdict
        assert done.stderr.splitlines()[0] == f"policy: {Policy.model_validate(policy).digest()}"
        assert made.policy_digest == Policy.model_validate(policy).digest()
    assert codes == {"robust": 0, "collapsed": 1, "inconclusive": 2}


def test_evidence_that_an_earlier_suite_measured_is_never_robust(tmp_path: Path) -> None:
    """Its engine let each checkpoint bring its own tokenizer and end tokens, so silence may be theirs."""
    earlier = REPORTS / "muse-1-with-an-artifact.json"
    done = judge(earlier, "--out", tmp_path / "new.json", policy=LENIENT, folder=tmp_path)
    made = AuditReport.model_validate_json((tmp_path / "new.json").read_bytes())
    assert (done.returncode, made.verdict) == (2, "inconclusive")
    assert {reason.code for reason in made.reasons} >= {"measured_by_earlier_suite"}
    assert {one.outcome for one in made.precisions} == {"inconclusive"}
    assert "Audit the pair anew" in " ".join(done.stdout.split())


def test_its_layout_does_not_change_which_report_it_was(tmp_path: Path) -> None:
    (tmp_path / "pretty.json").write_text(json.dumps(json.loads(MUSE_2.read_bytes()), indent=2))
    judge(tmp_path / "pretty.json", "--out", tmp_path / "new.json")
    made = AuditReport.model_validate_json((tmp_path / "new.json").read_bytes())
    assert made.judged_again is not None
    assert made.judged_again.report == sha256(MUSE_2.read_bytes())


def test_a_new_report_can_be_judged_again_and_names_the_one_before(tmp_path: Path) -> None:
    judge(MUSE_2, "--out", tmp_path / "second.json")
    done = judge(tmp_path / "second.json", "--out", tmp_path / "third.json", policy=LENIENT, folder=tmp_path)
    made = AuditReport.model_validate_json((tmp_path / "third.json").read_bytes())
    assert (done.returncode, made.verdict) == (0, "robust")
    assert made.judged_again is not None
    assert made.judged_again.report == sha256((tmp_path / "second.json").read_bytes())


def test_it_writes_markdown_and_a_name(tmp_path: Path) -> None:
    judge(MUSE_2, "--out", tmp_path / "new.md", "--name", "release 7")
    text = (tmp_path / "new.md").read_text()
    assert text.startswith("# Audit release 7: INCONCLUSIVE")
    assert f"Judged again from report `{sha256(MUSE_2.read_bytes())}`" in text.partition("## Why")[0]
    assert "Chosen after the run" in text


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"# Audit native: ROBUST", "report_malformed"),
        (b'{"schema": "lethe-report-9"}', "report_malformed"),
        (MUSE_2.read_bytes().replace(b'"role":"unlearned"', b'"role":"original"'), "report_inconsistent"),
    ],
)
def test_what_cannot_be_judged_ends_with_3_and_what_to_do(tmp_path: Path, content: bytes, code: str) -> None:
    (tmp_path / "report.json").write_bytes(content)
    done = judge(tmp_path / "report.json", "--out", tmp_path / "new.json")
    assert done.returncode == 3, done.stderr
    assert code in done.stderr
    assert "lethe report get" in " ".join(done.stderr.split())
    assert not (tmp_path / "new.json").exists()


def test_files_that_are_not_there_or_must_stay_are_told(tmp_path: Path) -> None:
    missing = judge(tmp_path / "missing.json")
    assert (missing.returncode, "not_found" in missing.stderr) == (3, True)
    (tmp_path / "report.json").write_bytes(MUSE_2.read_bytes())
    over = judge(tmp_path / "report.json", "--out", tmp_path / "report.json")
    assert (over.returncode, "must stay as it is" in " ".join(over.stderr.split())) == (3, True)
    nowhere = judge(MUSE_2, "--out", tmp_path / "no" / "new.json")
    assert nowhere.returncode == 3
    wrong = judge(MUSE_2, policy={"recovery_marign": 1}, folder=tmp_path)
    assert (wrong.returncode, "recovery_marign" in wrong.stderr) == (3, True)
    assert (tmp_path / "report.json").read_bytes() == MUSE_2.read_bytes()
