"""The models that remediations leave: their card, their deletion, and the room that they take."""

from pathlib import Path

import pytest

from app.settings import settings
from app.storage import model_store
from tests.support.remediations import SURE, begin, drain, failed_audit, follow, read
from tests.support.service import Service
from worker.attempts import remediations


def test_the_model_card_tells_the_verdict_and_does_not_touch_the_digest(service: Service) -> None:
    audit = failed_audit(service)
    remediation = begin(service, audit)
    drain()
    trial = read(service, remediation)["trials"][0]
    card = (Path(trial["model"]["uri"]) / "README.md").read_text()
    for said in (
        "SURE over npo_gdr",
        "| learning_rate | 0.0001 |",
        audit["checkpoints"]["original"]["digest"],
        audit["forget_set"]["digest"],
        "**ROBUST**",
        trial["audit"]["id"],
    ):
        assert said in card, said
    assert service.get(f"/v1/checkpoints/{trial['checkpoint']['id']}").json()["digest"] == trial["model"]["digest"]
    runner_sees = model_store.local_path(trial["model"]["uri"])
    from app.checkpoints.format.digests import digest

    assert digest(runner_sees) == trial["model"]["digest"]


def test_a_model_is_deleted_on_request_and_leaves_its_digest(service: Service) -> None:
    audit = failed_audit(service)
    remediation = begin(service, audit)
    service.refused(service.http.delete(remediation["links"]["model"]), 409, "conflict")
    drain()
    trial = read(service, remediation)["trials"][0]
    needing = service.audit(unlearned=trial["checkpoint"]["id"], original=audit["checkpoints"]["original"]["id"])
    problem = service.refused(service.http.delete(remediation["links"]["model"]), 409, "conflict")
    assert needing["id"] in problem["detail"]
    drain()
    for _ in range(2):
        assert service.http.delete(remediation["links"]["model"]).status_code == 204
    after = read(service, remediation)["trials"][0]
    assert after["model"]["deleted_at"] is not None
    assert after["model"]["digest"] == trial["model"]["digest"]
    assert not Path(trial["model"]["uri"]).parent.exists()
    assert service.get(remediation["links"]["report"]).status_code == 200
    events = [event for event in follow(service, remediation) if event["event"] == "model_deleted"]
    assert len(events) == 1
    assert events[0]["data"]["digest"] == trial["model"]["digest"]
    body = service.audit_body(unlearned=trial["checkpoint"]["id"], original=audit["checkpoints"]["original"]["id"])
    service.refused(service.post("/v1/audits", json=body), 422, "checkpoint_missing")


def test_what_would_not_fit_is_refused_before_anything_is_trained(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = failed_audit(service)
    monkeypatch.setenv("LETHE_MODEL_STORE_QUOTA", "100")  # a checkpoint of 16 float32 takes 64 bytes
    settings.cache_clear()
    try:
        begin(service, audit)
        path = f"/v1/audits/{audit['id']}/remediations"
        problem = service.refused(service.post(path, json=SURE), 507, "model_store_full")
        for said in ("64 bytes", "64 of 100", "LETHE_MODEL_STORE_QUOTA"):
            assert said in problem["detail"], said
        drain()
        # With its config and tokenizer it is larger than estimated, and all of it counts.
        service.refused(service.post(path, json=SURE), 507, "model_store_full")
    finally:
        monkeypatch.undo()
        settings.cache_clear()


def test_a_model_goes_when_it_was_kept_for_as_long_as_the_settings_say(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    remediation = begin(service, failed_audit(service))
    drain()
    for days, gone in (("1", False), ("1e-9", True)):
        monkeypatch.setenv("LETHE_MODEL_STORE_KEEP_DAYS", days)
        settings.cache_clear()
        remediations.clean()
        model = read(service, remediation)["trials"][0]["model"]
        assert (model["deleted_at"] is not None) == gone
        assert Path(model["uri"]).exists() != gone
    monkeypatch.undo()
    settings.cache_clear()
