"""What is added in one place is there for everyone: HTTP, the CLI's files, the API's refusals."""

from pathlib import Path

import pytest

from app.reports.model import AuditReport
from app.reports.rendering import formats
from app.reports.rendering.formats import FORMATS, Format
from tests.api.service import Service
from tests.support.worker_service import evaluate
from worker.loop import runner

TOY = Format("toy", "text/x-toy", ".toy", lambda report: f"toy: {report.verdict}".encode(), "toy: robust")


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, TOY.name, TOY)


def test_a_report_format_is_one_entry(service: Service, tmp_path: Path) -> None:
    audit = service.audit()
    runner.drain(evaluate)
    found = service.get(audit["links"]["self"]).json()
    path, said = found["links"]["report"], f"toy: {found['verdict']}"
    by_name = service.get(path, params={"format": "toy"})
    by_accept = service.get(path, headers={"Accept": "text/x-toy"})
    assert (by_name.text, by_accept.text) == (said, said)
    assert by_accept.headers["content-type"].startswith("text/x-toy")
    assert by_accept.headers["ETag"].endswith('-toy"')
    again = service.get(path, headers={"If-None-Match": by_accept.headers["ETag"], "Accept": "text/x-toy"})
    assert again.status_code == 304
    problem = service.refused(service.get(path, params={"format": "docx"}), 422, "invalid_request")
    assert "json, markdown, toy" in problem["errors"][0]["message"]
    problem = service.refused(service.get(path, headers={"Accept": "image/png"}), 406, "not_acceptable")
    assert "text/x-toy" in problem["detail"]
    report = AuditReport.model_validate_json(service.get(path).content)
    formats.write(report, tmp_path / "report.toy")
    assert (tmp_path / "report.toy").read_text() == said


def test_a_remediations_report_is_never_served_as_what_it_cannot_be(service: Service) -> None:
    path = "/v1/remediations/01987a3c-5a0e-7cc4-a6a5-6a6d0f6b8c11/report"
    service.refused(service.get(path, params={"format": "toy"}), 422, "invalid_request")
