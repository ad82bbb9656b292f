"""API keys: who may do what."""

import pytest

from app.database import engine as db
from app.errors import InvalidRequest
from app.http import auth
from app.http.scopes import Scope
from tests.support.service import Service


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Authorization": ""}, "key_missing"),
        ({"Authorization": "Basic abc"}, "key_missing"),
        (bearer("lethe_" + "x" * 43), "key_invalid"),
        (bearer("\xe9"), "key_invalid"),
    ],
)
def test_a_missing_or_wrong_key_is_refused(service: Service, headers: dict[str, str], code: str) -> None:
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    response = service.http.get("/v1/audits", headers=encoded)  # type: ignore[arg-type]  # httpx takes bytes too
    service.refused(response, 401, code)
    assert response.headers["WWW-Authenticate"].startswith("Bearer")


def test_a_revoked_key_is_refused(service: Service) -> None:
    made = service.made(service.post("/v1/keys", json={"name": "ci", "scopes": ["audits:read"]}))
    assert service.get("/v1/audits", headers=bearer(made["secret"])).status_code == 200
    assert service.http.delete(f"/v1/keys/{made['id']}").status_code == 204
    service.refused(service.get("/v1/audits", headers=bearer(made["secret"])), 401, "key_revoked")


def test_a_key_without_the_scope_is_refused_and_told_which_it_needs(service: Service) -> None:
    reader = bearer(service.key(Scope.AUDITS_READ))
    problem = service.refused(service.post("/v1/audits", headers=reader, json={}), 403, "scope_missing")
    assert "audits:write" in problem["detail"]
    writer = bearer(service.key(Scope.AUDITS_WRITE))
    service.refused(service.get("/v1/audits", headers=writer), 403, "scope_missing")
    service.refused(service.get("/v1/keys", headers=writer), 403, "scope_missing")


def test_a_secret_is_shown_once_and_stored_nowhere(service: Service) -> None:
    response = service.post("/v1/keys", json={"name": "ci", "scopes": ["audits:write", "audits:read"]})
    made = service.made(response)
    assert len(made["secret"]) == len("lethe_") + 43
    assert response.headers["Cache-Control"] == "no-store"
    listed = service.get("/v1/keys").json()["items"]
    assert made["id"] in [item["id"] for item in listed]
    assert made["secret"] not in service.get("/v1/keys").text
    with db.reading() as session:
        rows = [vars(key) for key in auth.list_keys(session)]
    assert made["secret"] not in str(rows)


def test_a_key_needs_a_name_and_known_scopes(service: Service) -> None:
    problem = service.refused(service.post("/v1/keys", json={"scopes": ["everything"]}), 422, "invalid_request")
    assert {error["field"] for error in problem["errors"]} == {"name", "scopes.0"}


def test_a_blank_name_is_refused_whoever_makes_the_key(service: Service) -> None:
    service.refused(service.post("/v1/keys", json={"name": " ", "scopes": ["admin"]}), 422, "invalid_request")
    with db.transaction() as session, pytest.raises(InvalidRequest, match="name"):
        auth.create_key(session, " ", [Scope.ADMIN])


def test_a_key_that_is_not_there_cannot_be_revoked(service: Service) -> None:
    service.refused(service.http.delete("/v1/keys/nothing"), 404, "not_found")


def test_an_id_with_strange_characters_is_refused(service: Service) -> None:
    service.refused(service.get("/v1/audits/%00"), 422, "invalid_request")
