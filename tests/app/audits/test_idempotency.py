"""The same request sent twice makes one audit."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app.http.scopes import Scope
from tests.support.service import Service
from tests.support.stand_ins.quick import evaluate
from worker.loop import runner

PATH = "/v1/audits"
KEY = {"Idempotency-Key": "build-1"}


def test_the_same_key_and_body_give_the_same_audit(service: Service) -> None:
    body = service.audit_body()
    first = service.post(PATH, json=body, headers=KEY)
    assert "Idempotency-Replayed" not in first.headers
    again = service.post(PATH, json=body, headers=KEY)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert service.made(again, 202) == service.made(first, 202)
    assert len(service.get(PATH).json()["items"]) == 1


def test_a_replay_needs_nothing_that_may_be_gone_by_then(service: Service) -> None:
    body = service.audit_body()
    first = service.made(service.post(PATH, json=body, headers=KEY), 202)
    runner.drain(evaluate)
    Path(body["original"]).rename(body["original"] + "-gone")
    service.http.delete(f"/v1/forget-sets/{body['forget_set']}")
    again = service.post(PATH, json=body, headers=KEY)
    assert service.made(again, 200)["id"] == first["id"]
    assert again.headers["Idempotency-Replayed"] == "true"


def test_the_same_key_with_another_body_is_refused(service: Service) -> None:
    body = service.audit_body()
    service.post(PATH, json=body, headers=KEY)
    response = service.post(PATH, json=body | {"name": "other"}, headers=KEY)
    service.refused(response, 422, "idempotency_key_reused")
    assert len(service.get(PATH).json()["items"]) == 1


def test_keys_of_different_clients_do_not_meet(service: Service) -> None:
    body = service.audit_body()
    first = service.made(service.post(PATH, json=body, headers=KEY), 202)
    other = {"Authorization": f"Bearer {service.key(Scope.AUDITS_WRITE)}"}
    second = service.made(service.post(PATH, json=body, headers=KEY | other), 202)
    assert second["id"] != first["id"]


def test_many_at_once_make_one_audit(service: Service) -> None:
    body = service.audit_body()
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda _: service.post(PATH, json=body, headers=KEY), range(8)))
    assert len({service.made(response, 202)["id"] for response in responses}) == 1
    assert [response.headers.get("Idempotency-Replayed") for response in responses].count(None) == 1
    assert len(service.get(PATH).json()["items"]) == 1


def test_many_at_once_with_different_bodies_make_one_audit(service: Service) -> None:
    body = service.audit_body()
    with ThreadPoolExecutor(8) as pool:
        responses = list(
            pool.map(lambda i: service.post(PATH, json=body | {"name": f"audit {i}"}, headers=KEY), range(8))
        )
    assert sorted(response.status_code for response in responses) == [202] + [422] * 7
    assert len(service.get(PATH).json()["items"]) == 1


def test_a_refused_request_does_not_use_up_its_key(service: Service) -> None:
    body = service.audit_body(plan={"precisions": ["nothing"]})
    service.refused(service.post(PATH, json=body, headers=KEY), 422, "unknown_precision")
    service.made(service.post(PATH, json=body | {"plan": {}}, headers=KEY), 202)


def test_an_empty_or_endless_key_is_refused(service: Service) -> None:
    for key in ("", "x" * 256, "a b"):
        response = service.post(PATH, json=service.audit_body(), headers={"Idempotency-Key": key})
        service.refused(response, 422, "invalid_request")
