"""A client of the service's HTTP API, which the CLI and the demo use; they have no other access to the service."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Self
from urllib.parse import quote

import httpx

from app.errors import Problem
from app.reports.model import AuditReport

DONE = ("finished", "succeeded", "cancelled", "failed")


class ServiceRefused(Exception):
    """The service answered with a problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


class ServiceUnreachable(Exception):
    """The service did not answer."""


class Client:
    """The API under one base URL with one key.

    Every call raises ServiceRefused with the service's problem, or ServiceUnreachable.
    """

    def __init__(self, url: str, key: str, *, timeout: float = 600.0) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # Registering a checkpoint reads all of it once, which may take minutes.
        self._http = httpx.Client(base_url=url, headers=headers, timeout=httpx.Timeout(timeout, connect=5.0))
        self.url = url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.close()

    def request(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        """Send one request; takes httpx's arguments."""
        try:
            response = self._http.request(method, path, **kwargs)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeEncodeError) as error:
            raise ServiceUnreachable(
                f"{self.url} does not answer ({error}); is the service running? Start one with `lethe dev`, or "
                "set LETHE_URL to another"
            ) from error
        if response.is_error:
            raise ServiceRefused(_problem(response))
        return response

    def get(self, path: str, **params: Any) -> Any:
        """GET as JSON; parameters that are None are left out."""
        return self.request("GET", path, params={k: v for k, v in params.items() if v is not None}).json()

    def upload_forget_set(self, files: Mapping[str, bytes], name: str | None = None) -> Any:
        """Upload a bundle: relative path -> content."""
        data = {} if name is None else {"name": name}
        parts = [("files", (path, content)) for path, content in files.items()]
        return self.request("POST", "/v1/forget-sets", files=parts, data=data).json()

    def register_forget_set(self, uri: str, name: str | None = None) -> Any:
        """Name a directory on the service's machine."""
        return self.request("POST", "/v1/forget-sets", json=_given(uri=uri, name=name)).json()

    def register_checkpoint(self, uri: str, name: str | None = None) -> Any:
        """Name a checkpoint directory on the service's machine."""
        return self.request("POST", "/v1/checkpoints", json=_given(uri=uri, name=name)).json()

    def submit(self, body: Mapping[str, Any], idempotency_key: str | None = None) -> Any:
        """Create an audit."""
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        return self.request("POST", "/v1/audits", json=dict(body), headers=headers).json()

    def judge(self, audit_id: str, body: Mapping[str, Any], idempotency_key: str | None = None) -> Any:
        """Judge a finished audit's stored scores again; returns the new audit."""
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        return self.request("POST", f"{_audit(audit_id)}/judgements", json=dict(body), headers=headers).json()

    def cancel(self, audit_id: str) -> Any:
        """Cancel an audit."""
        return self.request("POST", f"{_audit(audit_id)}/cancel").json()

    def wait(
        self,
        audit_id: str,
        on_change: Callable[[Any], None] = lambda audit: None,
        *,
        interval: float = 1.0,
        patience: float = 60.0,
    ) -> Any:
        """Follow an audit to its end, calling `on_change` with it after each read.

        Args:
            interval: Seconds between two reads.
            patience: Seconds for which requests to an unreachable service are repeated: it may be restarting.
        """
        return self._wait(_audit(audit_id), on_change, interval, patience)

    def diagnose(self, body: Mapping[str, Any]) -> Any:
        """Create a diagnosis."""
        return self.request("POST", "/v1/diagnoses", json=dict(body)).json()

    def diagnosis(self, diagnosis_id: str) -> Any:
        """A diagnosis as it stands."""
        return self.get(_diagnosis(diagnosis_id))

    def wait_diagnosis(self, diagnosis_id: str, on_change: Callable[[Any], None] = lambda diagnosis: None) -> Any:
        """Follow a diagnosis to its end, as `wait` does an audit."""
        return self._wait(_diagnosis(diagnosis_id), on_change)

    def _wait(self, path: str, on_change: Callable[[Any], None], interval: float = 1.0, patience: float = 60.0) -> Any:
        silent_since: float | None = None
        while True:
            try:
                found = self.get(path)
            except (ServiceUnreachable, ServiceRefused) as error:
                if isinstance(error, ServiceRefused) and error.problem.status < 500:
                    raise
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > patience:
                    raise
            else:
                silent_since = None
                on_change(found)
                if found["state"] in DONE:
                    return found
            time.sleep(interval)

    def remediate(self, audit_id: str, body: Mapping[str, Any], idempotency_key: str | None = None) -> Any:
        """Start a remediation of an audit's original."""
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        return self.request("POST", f"{_audit(audit_id)}/remediations", json=dict(body), headers=headers).json()

    def cancel_remediation(self, remediation_id: str) -> Any:
        """Cancel a remediation."""
        return self.request("POST", f"{_remediation(remediation_id)}/cancel").json()

    def delete_model(self, remediation_id: str) -> None:
        """Delete a remediation's model; its digest stays."""
        self.request("DELETE", f"{_remediation(remediation_id)}/model")

    def wait_remediation(self, remediation_id: str, on_change: Callable[[Any], None] = lambda row: None) -> Any:
        """Follow a remediation to its end, as `wait` does an audit."""
        return self._wait(_remediation(remediation_id), on_change)

    def remediation_report(self, remediation_id: str, form: str) -> bytes:
        """A remediation's before and after, as it is served in a format."""
        return self.request("GET", f"{_remediation(remediation_id)}/report", params={"format": form}).content

    def report(self, audit_id: str) -> AuditReport:
        """An audit's report."""
        return AuditReport.model_validate_json(self.report_body(audit_id, "json"))

    def report_body(self, audit_id: str, form: str) -> bytes:
        """An audit's report as it is served in a format."""
        return self.request("GET", f"{_audit(audit_id)}/report", params={"format": form}).content


def _audit(audit_id: str) -> str:
    return f"/v1/audits/{quote(audit_id, safe='')}"


def _diagnosis(diagnosis_id: str) -> str:
    return f"/v1/diagnoses/{quote(diagnosis_id, safe='')}"


def _remediation(remediation_id: str) -> str:
    return f"/v1/remediations/{quote(remediation_id, safe='')}"


def _given(**fields: str | None) -> dict[str, str]:
    return {key: value for key, value in fields.items() if value is not None}


def _problem(response: httpx.Response) -> Problem:
    try:
        return Problem.model_validate_json(response.content)
    except ValueError:
        return Problem(
            title="The service answered with something that is not a problem",
            status=response.status_code,
            detail=f"{response.status_code} from {response.request.url}: {response.text[:200]!r}",
            code="internal",
        )
