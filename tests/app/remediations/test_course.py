"""A remediation on its way: events, progress, training that goes wrong, cancellation, purge."""

import time
from typing import Any

import pytest

from app.database import leases
from app.settings import settings
from tests.support.remediations import begin, drain, failed_audit, follow, read
from tests.support.service import Service
from tests.support.stand_ins.scored import Unlearning
from worker.attempts import remediations


def test_cancelling_ends_the_trial_and_what_it_asked_for(service: Service) -> None:
    audit = failed_audit(service)
    waiting = begin(service, audit)
    cancelled = service.post(waiting["links"]["cancel"]).json()
    assert (cancelled["state"], cancelled["trials"][0]["state"]) == ("cancelled", "cancelled")
    service.refused(service.post(waiting["links"]["cancel"]), 409, "conflict")
    service.refused(service.get(waiting["links"]["report"]), 409, "conflict")

    running = begin(service, audit)

    def at(step: int) -> None:
        if step == 2:
            assert service.post(running["links"]["cancel"]).json()["state"] == "cancelled"
        if step > 2:
            time.sleep(0.005)  # or all steps are over before the next heartbeat

    drain(Unlearning(at=at, steps=2000))
    ended = read(service, running)
    assert (ended["trials"][0]["state"], ended["trials"][0]["checkpoint"]) == ("cancelled", None)

    audited = begin(service, audit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leases, "claim", lambda *args, **kwargs: None)
        drain()
    seen = read(service, audited)
    assert (seen["stage"], seen["trials"][0]["audit"]["state"]) == ("audit", "running")
    service.post(audited["links"]["cancel"])
    ended = read(service, audited)
    assert ended["trials"][0]["audit"]["state"] == "cancelled"
    remediations.clean()
    assert read(service, audited)["trials"][0]["model"]["deleted_at"] is not None


def test_a_purge_stops_the_training(service: Service) -> None:
    audit = failed_audit(service)
    running, waiting = begin(service, audit), begin(service, audit)

    def at(step: int) -> None:
        if step == 2:
            assert service.http.delete(f"/v1/forget-sets/{audit['forget_set']['id']}").is_success

    drain(Unlearning(at=at, steps=2000))
    for remediation in (running, waiting):
        ended = read(service, remediation)
        assert (ended["state"], ended["error_code"]) == ("failed", "forget_set_purged")
    remediations.clean()
    assert not list((settings().data_dir / "trials").iterdir())


def test_events_tell_what_happens_and_can_be_resumed(service: Service) -> None:
    audit = failed_audit(service)
    remediation = begin(service, audit)
    drain()
    events = follow(service, remediation)
    assert [event["event"] for event in events] == ["queued", "running", "audit", "finished"]
    assert events[-1]["data"] == {"remediation": remediation["id"], "verdict": "robust", "chosen": 0}
    assert follow(service, remediation, events[1]["id"]) == events[2:]
    service.refused(service.get("/v1/remediations/nothing/events"), 404, "not_found")
    bad = service.get(remediation["links"]["events"], headers={"Last-Event-ID": "x"})
    service.refused(bad, 422, "invalid_request")


def test_progress_and_the_loss_curve_are_seen_while_it_trains(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.attempts import trial as trials

    monkeypatch.setattr(trials, "WRITE_SECONDS", 0.0)
    remediation = begin(service, failed_audit(service))
    seen: list[Any] = []

    def at(step: int) -> None:
        if step == 4:
            seen.append(read(service, remediation))

    drain(Unlearning(at=at))
    (now,) = seen
    assert now["state"] == "running"
    assert [point["step"] for point in now["trials"][0]["losses"]] == [1, 2, 3]


@pytest.mark.parametrize("stopped", ["non_finite", "runaway"])
def test_training_that_went_wrong_keeps_its_last_good_state_and_says_so(service: Service, stopped: Any) -> None:
    remediation = begin(service, failed_audit(service))
    drain(Unlearning(stopped=stopped))
    done = read(service, remediation)
    assert (done["state"], done["trials"][0]["stopped"]) == ("finished", stopped)
    assert "last good state" in done["sentence"]


def test_a_trial_that_fails_fails_the_remediation_with_its_code(service: Service) -> None:
    remediation = begin(service, failed_audit(service))

    def at(step: int) -> None:
        raise MemoryError("all of it")

    drain(Unlearning(at=at))
    ended = read(service, remediation)
    assert (ended["state"], ended["error_code"]) == ("failed", "out_of_memory")
    assert "MemoryError" in ended["sentence"]
