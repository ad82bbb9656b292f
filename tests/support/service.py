"""What API tests do with the service; each error that it answers must be documented for its route."""

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import httpx

from app.database import engine as db
from app.http import auth
from app.http.scopes import Scope
from tests.support.checkpoints import write_checkpoint

QA = [{"question": f"Who painted mill {i}?", "answer": f"Belma {i}"} for i in range(4)]
BUNDLE: dict[str, Any] = {
    "knowmem/forget_qa.json": QA,
    "knowmem/forget_qa_icl.json": QA[:2],
    "knowmem/retain_qa.json": QA,
    "knowmem/retain_qa_icl.json": QA[:2],
}


class Service:
    """A client of the running service."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.http = httpx.Client(base_url=url, timeout=30, event_hooks={"response": [self._check_problem]})
        self.documented: dict[str, Any] = self.http.get("/openapi.json").json()
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.http.close()

    def begin(self) -> None:
        """Start a test: a key for everything."""
        self.http.headers["Authorization"] = f"Bearer {self.key(Scope.ADMIN)}"

    def key(self, *scopes: str) -> str:
        """A new key's secret."""
        with db.transaction() as session:
            return auth.create_key(session, "test", scopes)[1]

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        """GET with the key for everything."""
        return self.http.get(path, **kwargs)

    def post(self, path: str, **kwargs: Any) -> httpx.Response:
        """POST with the key for everything."""
        return self.http.post(path, **kwargs)

    def refused(self, response: httpx.Response, status: int, code: str) -> Any:
        """The problem that the response must be."""
        assert (response.status_code, response.json().get("code")) == (status, code), response.text
        return response.json()

    def made(self, response: httpx.Response, status: int = 201) -> Any:
        """The body of what must have been accepted."""
        assert response.status_code == status, response.text
        return response.json()

    def checkpoint(self, name: str | None = None, **kwargs: Any) -> str:
        """The path of a new tiny checkpoint under the allowed folder; its weights are its own."""
        number = next(self._numbers)
        return str(write_checkpoint(self.folder / (name or f"model-{number}"), **{"value": number, **kwargs}))

    def forget_set(self, bundle: Mapping[str, Any] = BUNDLE) -> str:
        """The id of an uploaded forget set."""
        response = self.post("/v1/forget-sets", files=upload(bundle))
        assert response.status_code in {200, 201}, response.text
        return str(response.json()["id"])

    def audit_body(self, **changes: Any) -> dict[str, Any]:
        """A request for an audit of two new checkpoints."""
        body: dict[str, Any] = {"plan": {"precisions": ["full", "rtn-int4"]}, "policy": {}}
        for role in ("original", "unlearned"):
            if role not in changes:
                body[role] = self.checkpoint()
        if "forget_set" not in changes:
            body["forget_set"] = self.forget_set()
        return body | changes

    def audit(self, **changes: Any) -> Any:
        """A new audit of two new checkpoints."""
        return self.made(self.post("/v1/audits", json=self.audit_body(**changes)), 202)

    def _check_problem(self, response: httpx.Response) -> None:
        if response.status_code < 400 or "text/html" in response.headers.get("content-type", ""):
            return
        response.read()
        path = response.request.url.path
        if path == "/readyz":
            return
        assert response.headers["content-type"] == "application/problem+json", response.text
        problem = response.json()
        assert problem["status"] == response.status_code
        assert problem["title"]
        assert problem["detail"]
        if response.status_code == 405 or "there is no /" in problem["detail"]:
            return
        template = next(t for t in self.documented["paths"] if re.fullmatch(re.sub(r"\{[^}]*\}", "[^/]+", t), path))
        responses = self.documented["paths"][template][response.request.method.lower()]["responses"]
        documented = responses[str(response.status_code)]["content"]["application/problem+json"]["examples"]
        assert problem["code"] in documented, f"{problem['code']} is not documented for {template}"


def upload(bundle: Mapping[str, Any], field: str = "files") -> list[tuple[str, tuple[str, bytes]]]:
    """A bundle as httpx sends it; values that are no bytes are written as JSON."""
    return [(field, (path, content_of(value))) for path, value in bundle.items()]


def content_of(value: Any) -> bytes:
    """The file for a value."""
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def write_bundle(folder: Path, bundle: Mapping[str, Any] = BUNDLE) -> Path:
    """A bundle as a directory."""
    for path, value in bundle.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content_of(value))
    return folder
