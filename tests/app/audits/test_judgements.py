"""Judging a finished audit again: a new audit with its own report, and the earlier one as it was."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.canonical import sha256
from app.database import engine as db
from app.database import models
from app.http.scopes import Scope
from app.judgement.policy import Policy
from app.reports.model import AuditReport
from tests.support.commands import lethe
from tests.support.places import REPORTS
from tests.support.remediations import failed_audit
from tests.support.service import Service
from tests.support.stand_ins.quick import diagnose
from tests.support.stand_ins.scored import Scores, Unlearning, evaluate, say
from worker.loop import runner

POLICY = {"may_be_missing": ["verbmem"]}
STRICT = POLICY | {"utility_floor": 1.0}
FORGOT: Scores = {"full": (5, 80), "rtn-int4": (5, 80)}
EARLIER = REPORTS / "muse-1-first.json"


@pytest.fixture
def audit(service: Service) -> Any:
    """A robust audit of a model that kept eight ninths of its utility."""
    made = service.audit(unlearned=say(service.checkpoint(), FORGOT), policy=POLICY)
    runner.drain(evaluate, diagnose)
    found = service.get(made["links"]["self"]).json()
    assert found["verdict"] == "robust"
    return found


def judge(service: Service, audit: Any, policy: Any = None, **kwargs: Any) -> Any:
    body = {} if policy is None else {"policy": policy}
    return service.post(f"{audit['links']['self']}/judgements", json=body, **kwargs)


def report_of(service: Service, audit: Any) -> AuditReport:
    return AuditReport.model_validate_json(service.get(audit["links"]["report"]).content)


def test_another_policy_gives_another_verdict_in_a_new_audit_that_is_finished_at_once(
    service: Service, audit: Any
) -> None:
    response = judge(service, audit, STRICT)
    made = service.made(response)
    assert response.headers["Location"] == made["links"]["self"] != audit["links"]["self"]
    assert service.get(response.headers["Location"]).json() == made
    assert (made["state"], made["verdict"]) == ("finished", "collapsed")
    report = report_of(service, made)
    assert (report.audit.id, report.verdict, report.policy) == (made["id"], "collapsed", Policy.model_validate(STRICT))
    assert report.policy_digest == made["policy_digest"] == Policy.model_validate(STRICT).digest()
    assert report.canonical() == service.get(made["links"]["report"]).content


def test_the_earlier_audit_and_its_report_stay_as_they_were(service: Service, audit: Any) -> None:
    before = service.get(audit["links"]["report"])
    made = service.made(judge(service, audit, STRICT))
    after = service.get(audit["links"]["report"])
    assert (after.content, after.headers["ETag"]) == (before.content, before.headers["ETag"])
    assert service.get(audit["links"]["self"]).json() == audit | {"judgements": [made["id"]]}


def test_each_names_the_other_and_the_new_report_says_where_its_evidence_is_from(service: Service, audit: Any) -> None:
    earlier = service.get(audit["links"]["report"])
    made = service.made(judge(service, audit, STRICT))
    assert (made["judged_again_from"], made["judgements"]) == (audit["id"], [])
    report, old = report_of(service, made), AuditReport.model_validate_json(earlier.content)
    assert report.judged_again is not None
    assert report.judged_again.model_dump() == {
        "report": sha256(earlier.content),
        "audit": audit["id"],
        "lethe": old.lethe,
        "policy_digest": audit["policy_digest"],
    }
    assert "Judged again" in report.notes[0]
    assert not any("signature" in note for note in report.notes)
    assert [(e.role, e.precision, e.evaluation_id, e.evaluation) for e in report.evidence] == [
        (e.role, e.precision, e.evaluation_id, e.evaluation) for e in old.evidence
    ]
    assert (report.diagnosis, report.checkpoints, report.plan) == (old.diagnosis, old.checkpoints, old.plan)
    markdown = service.get(made["links"]["report"], params={"format": "markdown"}).text
    assert audit["id"] in markdown
    assert "Chosen after the run" in markdown


def test_it_shares_what_was_measured_and_measures_nothing(service: Service, audit: Any) -> None:
    made = service.made(judge(service, audit))
    assert [part | {"reused": True} for part in audit["parts"]] == made["parts"]
    assert made["checkpoints"] == audit["checkpoints"]
    assert made["links"]["diagnosis"] == audit["links"]["diagnosis"]
    with db.reading() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(models.Evaluation)) == len(audit["parts"])


def test_without_a_policy_it_is_judged_by_the_default(service: Service, audit: Any) -> None:
    made = service.made(judge(service, audit))
    assert made["policy_digest"] == Policy().digest()
    assert made["verdict"] == "inconclusive"  # VerbMem is missing, and the default does not let it be


def test_it_is_in_the_list_and_its_events_are_those_of_an_audit_that_is_over(service: Service, audit: Any) -> None:
    made = service.made(service.post(f"{audit['links']['self']}/judgements", json={"name": "stricter"}))
    listed = service.get("/v1/audits").json()["items"]
    assert [(item["id"], item["name"], item["judged_again_from"]) for item in listed] == [
        (made["id"], "stricter", audit["id"]),
        (audit["id"], audit["name"], None),
    ]
    assert service.get("/v1/audits", params={"verdict": "robust"}).json()["items"][0]["id"] == audit["id"]
    sent = service.get(made["links"]["events"]).text
    kinds = [line.removeprefix("event: ") for line in sent.splitlines() if line.startswith("event: ")]
    assert kinds == ["queued", "finished"]
    assert '"verdict":"inconclusive"' in sent.replace(" ", "")
    service.refused(service.post(made["links"]["cancel"]), 409, "conflict")


def test_what_was_judged_again_can_be_judged_again(service: Service, audit: Any) -> None:
    second = service.made(judge(service, audit, STRICT))
    third = service.made(judge(service, second, POLICY))
    assert (third["judged_again_from"], third["verdict"]) == (second["id"], "robust")
    report = report_of(service, third)
    assert report.judged_again is not None
    assert report.judged_again.audit == second["id"]
    assert report.judged_again.report == sha256(service.get(second["links"]["report"]).content)
    first, again = report_of(service, audit), report
    assert again.precisions == first.precisions


def test_it_needs_neither_the_forget_set_nor_the_checkpoints(service: Service, audit: Any) -> None:
    forget_set = f"/v1/forget-sets/{audit['forget_set']['id']}"
    assert service.http.delete(forget_set).status_code == 204
    for role in ("original", "unlearned"):
        os.rename(audit["checkpoints"][role]["uri"], audit["checkpoints"][role]["uri"] + "-gone")
    made = service.made(judge(service, audit, STRICT))
    assert made["verdict"] == "collapsed"


def test_a_forget_set_is_purged_whoever_judged_its_scores_again(service: Service, audit: Any) -> None:
    made = service.made(judge(service, audit, STRICT))
    before = service.get(made["links"]["report"]).content
    assert service.http.delete(f"/v1/forget-sets/{audit['forget_set']['id']}").status_code == 204
    assert service.get(made["links"]["report"]).content == before
    assert service.get(made["links"]["self"]).json() == made


def test_scores_that_a_later_audit_had_measured_do_not_count_in_the_earlier_one(service: Service) -> None:
    body = service.audit_body(unlearned=say(service.checkpoint(), FORGOT), policy=POLICY)
    failed = service.made(service.post("/v1/audits", json=body), 202)
    service.http.delete(f"/v1/forget-sets/{body['forget_set']}")
    later = service.made(service.post("/v1/audits", json=body | {"forget_set": service.forget_set()}), 202)
    runner.drain(evaluate, diagnose)
    assert service.get(later["links"]["self"]).json()["verdict"] == "robust"
    again = service.made(judge(service, failed, POLICY))
    assert again["verdict"] == "inconclusive"
    assert {(part["state"], part["reused"]) for part in again["parts"]} == {("failed", False)}
    assert [part["evaluation"] for part in again["parts"]] == [part["evaluation"] for part in later["parts"]]


def test_only_a_finished_audit_can_be_judged_again(service: Service) -> None:
    queued = service.audit()
    assert "queued" in service.refused(judge(service, queued), 409, "conflict")["detail"]
    missing = service.post("/v1/audits/nothing/judgements", json={})
    service.refused(missing, 404, "not_found")


def test_bad_requests_are_refused(service: Service, audit: Any) -> None:
    problem = service.refused(judge(service, audit, {"recovery_marign": 0.1}), 422, "invalid_request")
    assert problem["errors"][0]["field"] == "policy.recovery_marign"
    path = f"{audit['links']['self']}/judgements"
    service.refused(service.post(path, json={"plan": {}}), 422, "invalid_request")
    service.refused(
        service.post(path, content=b"{", headers={"Content-Type": "application/json"}), 400, "malformed_request"
    )


def test_a_key_that_may_only_read_judges_nothing(service: Service, audit: Any) -> None:
    headers = {"Authorization": f"Bearer {service.key(Scope.AUDITS_READ)}"}
    service.refused(judge(service, audit, headers=headers), 403, "scope_missing")
    service.refused(judge(service, audit, headers={"Authorization": ""}), 401, "key_missing")
    writer = {"Authorization": f"Bearer {service.key(Scope.AUDITS_WRITE)}"}
    service.made(judge(service, audit, headers=writer))


def test_the_same_key_and_body_give_the_same_audit(service: Service, audit: Any) -> None:
    key = {"Idempotency-Key": "stricter-1"}
    first = judge(service, audit, STRICT, headers=key)
    again = judge(service, audit, STRICT, headers=key)
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert service.made(again, 200) == service.made(first)
    assert again.headers["Location"] == first.headers["Location"]
    service.refused(judge(service, audit, POLICY, headers=key), 422, "idempotency_key_reused")
    # The same body sent to another audit is another request.
    service.refused(judge(service, first.json(), STRICT, headers=key), 422, "idempotency_key_reused")


def test_many_at_once_with_one_key_make_one_audit(service: Service, audit: Any) -> None:
    key = {"Idempotency-Key": "at-once"}
    with ThreadPoolExecutor(6) as pool:
        responses = list(pool.map(lambda _: judge(service, audit, STRICT, headers=key), range(6)))
    assert sorted(response.status_code for response in responses) == [200] * 5 + [201]
    assert len({response.json()["id"] for response in responses}) == 1
    assert len(service.get("/v1/audits").json()["items"]) == 2


def test_the_report_that_an_earlier_version_left_is_judged_and_stays(service: Service, audit: Any) -> None:
    left = EARLIER.read_bytes()
    with db.transaction() as session:
        row = session.get_one(models.Report, audit["id"])
        row.body, row.digest = left.decode(), sha256(left)
    made = service.made(judge(service, audit))
    assert made["verdict"] == "recovered"
    report = report_of(service, made)
    assert service.get(audit["links"]["report"]).content == left
    assert report.judged_again is not None
    assert report.judged_again.report == sha256(left)


def test_an_audit_shows_the_policy_of_its_time_and_is_judged_by_one_of_today(service: Service, audit: Any) -> None:
    then = {"a_limit_of_then": 0.5}
    with db.transaction() as session:
        session.get_one(models.Audit, audit["id"]).policy = then
    assert service.get(audit["links"]["self"]).json()["policy"] == then
    made = service.made(judge(service, audit, POLICY))
    assert (made["policy"], made["verdict"]) == (Policy.model_validate(POLICY).model_dump(mode="json"), "robust")


def test_a_remediation_of_what_was_judged_again_is_judged_by_that_policy(service: Service) -> None:
    failed = failed_audit(service)
    policy = {"confidence": 0.9}
    made = service.made(judge(service, failed, policy))
    assert made["verdict"] == "recovered"
    recipe = {"method": "sure", "loss": "npo_gdr"}
    begun = service.made(service.post(f"/v1/audits/{made['id']}/remediations", json=recipe), 202)
    runner.drain(evaluate, diagnose, Unlearning())
    ended = service.get(begun["links"]["self"]).json()
    assert (ended["state"], ended["verdict"]) == ("finished", "robust")
    proof = service.get(f"/v1/audits/{ended['trials'][-1]['audit']['id']}").json()
    assert proof["policy_digest"] == made["policy_digest"] == Policy.model_validate(policy).digest()
    assert proof["judged_again_from"] is None


def test_the_command_prints_the_new_audit_and_ends_with_its_verdict(
    service: Service, audit: Any, tmp_path: Path
) -> None:
    place = {"LETHE_URL": service.url, "LETHE_API_KEY": service.key(Scope.AUDITS_WRITE, Scope.AUDITS_READ)}
    (tmp_path / "policy.json").write_text(json.dumps(STRICT))
    done = lethe("audit", "judge", audit["id"], "--policy", tmp_path / "policy.json", "--name", "stricter", env=place)
    assert done.returncode == 1, done.stderr
    made = service.get(f"/v1/audits/{done.stdout.strip()}").json()
    assert (made["judged_again_from"], made["verdict"], made["name"]) == (audit["id"], "collapsed", "stricter")
    assert "COLLAPSED" in done.stderr
    assert "signature" not in done.stderr
    shown = [lethe("audit", "show", one["id"], env=place).stdout for one in (audit, made)]
    assert f"judged again by {made['id']}" in shown[0]
    assert f"judged again from {audit['id']}" in shown[1]
    default = lethe("audit", "judge", audit["id"], env=place)
    assert (default.returncode, "INCONCLUSIVE" in default.stderr) == (2, True)
    missing = lethe("audit", "judge", "nothing", env=place)
    assert (missing.returncode, missing.stdout) == (3, "")
