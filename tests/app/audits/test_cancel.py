"""Cancelling an audit, and what goes on without it."""

from pathlib import Path

import sqlalchemy as sa

from app.database import engine as db
from app.database import leases
from app.database.attempts import Beat, Progress
from app.database.models import Evaluation
from app.database.states import EvaluationState
from tests.support.service import Service
from tests.support.stand_ins.quick import evaluate
from worker.loop import outcomes, runner


def states() -> list[str]:
    with db.reading() as session:
        return sorted(session.scalars(sa.select(Evaluation.state)))


def test_a_queued_audit_is_cancelled_with_its_evaluations(service: Service) -> None:
    audit = service.audit()
    after = service.made(service.post(audit["links"]["cancel"]), 200)
    assert (after["state"], after["verdict"]) == ("cancelled", None)
    assert after["finished_at"]
    assert states() == ["cancelled"] * 4
    assert runner.drain(evaluate) == 0


def test_a_cancelled_or_finished_audit_cannot_be_cancelled(service: Service) -> None:
    audit = service.audit()
    service.post(audit["links"]["cancel"])
    service.refused(service.post(audit["links"]["cancel"]), 409, "conflict")
    done = service.audit()
    runner.drain(evaluate)
    service.refused(service.post(done["links"]["cancel"]), 409, "conflict")
    service.refused(service.post("/v1/audits/nothing/cancel"), 404, "not_found")


def test_evaluations_that_another_audit_needs_go_on(service: Service) -> None:
    first = service.audit()
    second = service.audit(original=first["checkpoints"]["original"]["id"], forget_set=first["forget_set"]["id"])
    service.post(first["links"]["cancel"])
    assert states() == ["cancelled"] * 2 + ["queued"] * 4
    assert runner.drain(evaluate) == 4
    assert service.get(second["links"]["self"]).json()["state"] == "finished"


def test_a_running_evaluation_is_told_to_stop(service: Service) -> None:
    audit = service.audit()
    with db.transaction() as session:
        claim = leases.claim(session, "a worker")
    assert claim is not None
    service.post(audit["links"]["cancel"])
    assert states() == ["cancelled"] * 3 + ["running"]
    with db.transaction() as session:
        assert leases.beat(session, claim, Progress("verbmem", 1, 2)) is Beat.CANCEL
    outcomes.release(claim)
    assert states() == ["cancelled"] * 4


def test_a_new_audit_takes_back_the_order_to_stop(service: Service) -> None:
    audit = service.audit()
    with db.transaction() as session:
        claim = leases.claim(session, "a worker")
    assert claim is not None
    service.post(audit["links"]["cancel"])
    ids = {role: found["id"] for role, found in audit["checkpoints"].items()}
    anew = service.audit(**ids, forget_set=audit["forget_set"]["id"])
    assert states() == ["queued"] * 3 + ["running"]
    assert anew["state"] == "running"
    # The worker had seen the order already and gives the evaluation back: it is queued, not cancelled.
    assert outcomes.release(claim) is EvaluationState.QUEUED
    assert runner.drain(evaluate) == 4
    assert service.get(anew["links"]["self"]).json()["state"] == "finished"


def test_a_cancelled_audit_has_no_report(service: Service) -> None:
    audit = service.audit()
    service.post(audit["links"]["cancel"])
    service.refused(service.get(audit["links"]["report"]), 409, "conflict")


def test_a_cancelled_audit_stays_as_it_ended(service: Service) -> None:
    audit = service.audit()
    with db.transaction() as session:
        claim = leases.claim(session, "a worker")
    assert claim is not None
    runner.run(claim, evaluate)
    ended = service.made(service.post(audit["links"]["cancel"]), 200)
    assert sorted(part["state"] for part in ended["parts"]) == ["cancelled"] * 3 + ["succeeded"]
    ids = {role: found["id"] for role, found in audit["checkpoints"].items()}
    service.audit(**ids, forget_set=audit["forget_set"]["id"])
    assert service.get(audit["links"]["self"]).json() == ended
    runner.drain(evaluate)
    assert service.get(audit["links"]["self"]).json() == ended


def test_a_part_that_others_still_need_is_cancelled_for_this_audit(service: Service) -> None:
    first = service.audit()
    ids = {role: found["id"] for role, found in first["checkpoints"].items()}
    second = service.audit(**ids, forget_set=first["forget_set"]["id"])
    ended = service.made(service.post(first["links"]["cancel"]), 200)
    assert {part["state"] for part in ended["parts"]} == {"cancelled"}
    assert {part["state"] for part in service.get(second["links"]["self"]).json()["parts"]} == {"queued"}


def test_a_finished_audit_stays_as_its_report_says(service: Service) -> None:
    audit = service.audit()
    Path(audit["checkpoints"]["original"]["uri"], "behaviour").write_text("error")
    runner.drain(evaluate)
    ended = service.get(audit["links"]["self"]).json()
    assert (ended["state"], ended["verdict"]) == ("finished", "inconclusive")
    assert [part["state"] for part in ended["parts"] if part["role"] == "original"] == ["failed"] * 2
    ids = {role: found["id"] for role, found in audit["checkpoints"].items()}
    anew = service.audit(**ids, forget_set=audit["forget_set"]["id"])
    assert {part["state"] for part in anew["parts"]} == {"queued", "succeeded"}
    assert service.get(audit["links"]["self"]).json() == ended
