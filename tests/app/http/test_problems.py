"""Errors that no route owns: bodies, methods, paths, the database, bugs."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from app.audits import service as audits
from app.database import engine as db
from app.settings import settings
from tests.support.running_service import LIMIT
from tests.support.service import Service

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("path", ["/v1/audits", "/v1/checkpoints", "/v1/keys", "/v1/forget-sets"])
@pytest.mark.parametrize("body", [b'{"name": ', b"\xff\xfe", b'{"name": "caf\xe9"}'])
def test_malformed_json_is_refused(service: Service, path: str, body: bytes) -> None:
    problem = service.refused(service.post(path, content=body, headers=JSON), 400, "malformed_request")
    assert "JSON" in problem["detail"] or "body" in problem["detail"]


def test_json_of_another_kind_is_refused(service: Service) -> None:
    service.refused(service.post("/v1/audits", content=b"[]", headers=JSON), 422, "invalid_request")
    service.refused(service.post("/v1/audits", content=b""), 422, "invalid_request")
    service.refused(service.post("/v1/audits", content=b"{}", headers={"Content-Type": "text/plain"}), 422,
                    "invalid_request")  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/audits", "/v1/forget-sets"])
def test_a_body_too_large_is_refused_declared_or_not(service: Service, path: str) -> None:
    def stream() -> Iterator[bytes]:
        for _ in range(LIMIT // 2**16 + 2):
            yield b" " * 2**16

    service.refused(service.post(path, content=b" " * (LIMIT + 1), headers=JSON), 413, "too_large")
    service.refused(service.post(path, content=stream(), headers=JSON), 413, "too_large")


def test_an_upload_too_large_is_refused_declared_or_not(service: Service) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="raw/forget.txt"\r\n\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x"}

    def stream() -> Iterator[bytes]:
        yield head
        for _ in range(LIMIT // 2**16 + 2):
            yield b"a" * 2**16
        yield b"\r\n--x--\r\n"

    service.refused(service.post("/v1/forget-sets", content=b"".join(stream()), headers=kind), 413, "too_large")
    service.refused(service.post("/v1/forget-sets", content=stream(), headers=kind), 413, "too_large")


def test_an_unknown_path_or_method_is_a_problem(service: Service) -> None:
    service.refused(service.get("/v1/nothing"), 404, "not_found")
    response = service.http.put("/v1/audits", json={})
    problem = service.refused(response, 405, "method_not_allowed")
    assert {"GET", "POST"} <= set(response.headers["Allow"].split(", "))
    assert "GET" in problem["detail"]
    assert "POST" in problem["detail"]


def test_an_unexpected_error_says_nothing_of_the_inside(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(audits, "get", fail)
    response = service.get("/v1/audits/01987a3c-5a0e-7cc4-a6a5-6a6d0f6b8c11")
    problem = service.refused(response, 500, "internal")
    assert "secret" not in response.text
    assert response.headers["X-Request-ID"] in problem["detail"]


def test_a_request_id_is_kept_when_it_is_harmless(service: Service) -> None:
    assert service.get("/livez", headers={"X-Request-ID": "ci-1"}).headers["X-Request-ID"] == "ci-1"
    assert service.get("/livez", headers={"X-Request-ID": "a b\t{}"}).headers["X-Request-ID"] != "a b\t{}"


def test_an_unreachable_database_is_a_503(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    working = db.engine()
    monkeypatch.setattr(settings(), "database_url", "postgresql://nobody@127.0.0.1:1/nothing")
    db.engine.cache_clear()
    try:
        response = service.get("/v1/audits")
        service.refused(response, 503, "database_unavailable")
        assert int(response.headers["Retry-After"]) > 0
        assert service.get("/livez").json() == {"status": "alive"}
        ready = service.get("/readyz")
        assert (ready.status_code, ready.json()["database"]) == (503, "unreachable")
    finally:
        db.engine().dispose()
        db.engine.cache_clear()
        monkeypatch.undo()
    assert service.get("/readyz").status_code == 200
    working.dispose()


def test_texts_of_a_forget_set_never_reach_an_error_message(service: Service) -> None:
    with db.reading() as session, pytest.raises(sa.exc.DBAPIError) as caught:
        session.execute(sa.text("SELECT * FROM nothing WHERE a = :a"), {"a": "Belma of Lunden"})
    assert "Belma" not in str(caught.value)
