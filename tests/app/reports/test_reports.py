"""Reports over HTTP: formats, ETags, and what is said while there is none."""

import hashlib
from typing import Any

import pytest

from app.reports.model import AuditReport
from tests.support.service import Service
from tests.support.stand_ins.quick import diagnose, evaluate
from tests.support.stand_ins.scored import evaluate as scored
from tests.support.stand_ins.scored import say
from worker.loop import runner


@pytest.fixture
def finished(service: Service) -> Any:
    audit = service.audit()
    runner.drain(evaluate)
    return service.get(audit["links"]["self"]).json()


def test_the_report_is_the_canonical_json_that_its_etag_names(service: Service, finished: Any) -> None:
    response = service.get(finished["links"]["report"])
    assert response.headers["content-type"] == "application/json"
    assert response.headers["ETag"] == f'"sha256:{hashlib.sha256(response.content).hexdigest()}"'
    assert response.headers["Vary"] == "Accept"
    report = AuditReport.model_validate_json(response.content)
    assert report.canonical() == response.content
    assert (report.audit.id, report.verdict) == (finished["id"], finished["verdict"])


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("text/markdown", "text/markdown; charset=utf-8"),
        ("text/*", "text/markdown; charset=utf-8"),
        ("text/html;q=0.9, text/markdown;q=0.5", "text/markdown; charset=utf-8"),
        ("application/json;q=0.2, text/markdown;q=0.5", "text/markdown; charset=utf-8"),
        ("application/json;q=0, */*", "text/markdown; charset=utf-8"),
        ("", "application/json"),
    ],
)
def test_the_format_follows_accept(service: Service, finished: Any, accept: str, kind: str) -> None:
    response = service.get(finished["links"]["report"], headers={"Accept": accept})
    assert response.headers["content-type"] == kind
    if kind.startswith("text"):
        assert response.text.startswith("# ")
        assert finished["verdict"] in response.text.lower()


def test_the_format_parameter_goes_before_accept(service: Service, finished: Any) -> None:
    path = finished["links"]["report"]
    response = service.get(path, params={"format": "markdown"}, headers={"Accept": "application/json"})
    assert response.headers["content-type"].startswith("text/markdown")
    service.refused(service.get(path, params={"format": "docx"}), 422, "invalid_request")


def test_a_format_that_is_not_offered_is_refused(service: Service, finished: Any) -> None:
    response = service.get(finished["links"]["report"], headers={"Accept": "image/png"})
    assert "text/markdown" in service.refused(response, 406, "not_acceptable")["detail"]


def test_a_report_that_the_client_has_is_not_sent_again(service: Service, finished: Any) -> None:
    path = finished["links"]["report"]
    as_json = service.get(path).headers["ETag"]
    as_markdown = service.get(path, params={"format": "markdown"}).headers["ETag"]
    assert as_json != as_markdown
    for known in (as_json, f"W/{as_json}", f'"other", {as_json}', "*"):
        response = service.get(path, headers={"If-None-Match": known})
        assert (response.status_code, response.content, response.headers["ETag"]) == (304, b"", as_json)
    assert service.get(path, headers={"If-None-Match": as_markdown}).status_code == 200


def test_a_report_that_is_not_ready_says_so_and_when_to_ask_again(service: Service) -> None:
    audit = service.audit()
    response = service.get(audit["links"]["report"])
    service.refused(response, 404, "report_not_ready")
    assert int(response.headers["Retry-After"]) > 0
    service.refused(service.get("/v1/audits/nothing/report"), 404, "not_found")


def test_a_pair_of_the_same_weights_has_not_forgotten_and_its_scores_raise_an_alarm(service: Service) -> None:
    """Whatever makes the unlearned one silent, a config or an end token, it is none of its weights."""

    def the_same(*args: Any, **kwargs: Any) -> Any:
        return diagnose(*args, **kwargs).model_copy(update={"identical": True})

    silent = say(service.checkpoint(), {"full": (5, 90), "rtn-int4": (5, 90)})
    audit = service.audit(unlearned=silent)
    runner.drain(scored, the_same)
    report = service.get(audit["links"]["report"]).json()
    assert (report["verdict"], report["reasons"][0]["code"]) == ("not_forgotten", "same_weights")
    assert [alarm["code"] for alarm in report["alarms"]] == ["scores_of_same_weights_differ"]
    text = service.get(audit["links"]["report"], params={"format": "markdown"}).text
    assert text.index("NOT FORGOTTEN") < text.index("ALARM") < text.index("## Why")


def test_a_metric_that_the_forget_set_lacks_keeps_the_audit_from_robust_unless_the_policy_lets_it(
    service: Service,
) -> None:
    forgot = say(service.checkpoint(), {"full": (5, 90), "rtn-int4": (5, 90)})
    missing = service.audit(unlearned=forgot)
    runner.drain(scored, diagnose)
    report = service.get(missing["links"]["report"]).json()
    assert report["plan"]["metrics"] == ["verbmem", "knowmem_forget", "privleak", "knowmem_retain"]
    assert report["verdict"] == "inconclusive"
    assert {reason["metric"] for reason in report["reasons"] if reason["code"] == "metric_missing"} == {"verbmem"}
    ids = {role: found["id"] for role, found in missing["checkpoints"].items()}
    policy = {"may_be_missing": ["verbmem"]}
    allowed = service.audit(**ids, forget_set=missing["forget_set"]["id"], policy=policy)
    assert service.get(allowed["links"]["report"]).json()["verdict"] == "robust"
