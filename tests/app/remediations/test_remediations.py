"""Remediations over HTTP: what a request becomes, what a worker makes of it, what is refused."""

from pathlib import Path
from typing import Any

import pytest

from app.database import engine as db
from app.database.models import Trial
from app.http.scopes import Scope
from app.settings import settings
from tests.support.remediations import SURE, TEXTS, begin, drain, failed_audit, read
from tests.support.service import BUNDLE, Service


def test_one_request_makes_a_model_that_passes_the_audit_that_failed(service: Service) -> None:
    audit = failed_audit(service)
    assert audit["verdict"] == "recovered"
    response = service.post(f"/v1/audits/{audit['id']}/remediations", json=SURE | {"hyperparameters": {"alpha": 8}})
    accepted = service.made(response, 202)
    assert response.headers["Location"] == accepted["links"]["self"]
    assert int(response.headers["Retry-After"]) > 0
    assert (accepted["state"], accepted["audit"], accepted["loss"]) == ("queued", audit["id"], "npo_gdr")
    assert accepted["recipes"][0]["hyperparameters"]["alpha"] == 8
    assert accepted["recipes"][0]["hyperparameters"]["learning_rate"] == 1e-4  # SURE's default

    drain()
    done = read(service, accepted)
    assert (done["state"], done["verdict"], done["chosen"]) == ("finished", "robust", 0)
    (trial,) = done["trials"]
    assert (trial["state"], trial["attempt"], trial["steps"], trial["stopped"]) == ("succeeded", 1, 4, "steps")
    assert [point["loss"] for point in trial["losses"]] == [4.0, 2.0, 4 / 3, 1.0]
    assert trial["saliency"][0]["module"] == "layers.0.mlp"
    assert trial["screening"] is None

    new = service.get(done["links"]["audit"]).json()
    assert new["plan"]["precisions"] == ["full", "rtn-int8", "rtn-int4"]
    assert (new["policy_digest"], new["verdict"]) == (audit["policy_digest"], "robust")
    assert new["checkpoints"]["original"] == audit["checkpoints"]["original"]
    assert new["checkpoints"]["unlearned"]["digest"] == trial["checkpoint"]["digest"] == trial["model"]["digest"]
    # The original is not evaluated again.
    assert {part["reused"] for part in new["parts"] if part["role"] == "original"} == {True}

    place = Path(trial["model"]["uri"])
    assert place.is_relative_to(settings().data_dir / "models")
    assert (place / "model.safetensors").exists()
    assert trial["model"]["bytes"] == sum(file.stat().st_size for file in place.iterdir()) - _grown(place)
    # It is a checkpoint like any other, although it lies outside the allowed folders.
    again = service.audit(unlearned=trial["checkpoint"]["id"], original=audit["checkpoints"]["original"]["id"])
    assert again["checkpoints"]["unlearned"]["digest"] == trial["model"]["digest"]


def _grown(place: Path) -> int:
    """By how much completing the card made it longer."""
    from app.evidence.unlearning import Unlearned
    from app.remediations.stored_models.cards import card

    with db.reading() as session:
        trial = session.get_one(Trial, place.parent.name)
        first = card(Unlearned.model_validate(trial.result), None)
    return len((place / "README.md").read_bytes()) - len(first.encode())


def test_the_report_shows_before_and_after_side_by_side(service: Service) -> None:
    audit = failed_audit(service)
    remediation = begin(service, audit)
    problem = service.refused(service.get(remediation["links"]["report"]), 404, "report_not_ready")
    assert "queued" in problem["detail"]
    drain()
    response = service.get(remediation["links"]["report"])
    assert response.headers["ETag"]
    report = response.json()
    assert (report["verdict_before"], report["verdict"]) == ("recovered", "robust")
    assert [at["precision"] for at in report["precisions"]] == ["full", "rtn-int8", "rtn-int4"]
    at = report["precisions"][2]
    assert (at["first"], at["new"]) == ("recovered", "robust")
    forget, retain = at["metrics"]
    assert (forget["metric"], forget["original"]) == ("knowmem_forget", pytest.approx(90))
    assert forget["first"]["score"] == pytest.approx(88)
    assert forget["new"]["score"] == pytest.approx(11)
    assert forget["new"]["kept"] == pytest.approx(11 / 90)
    assert (retain["metric"], retain["new"]["kept"]) == ("knowmem_retain", pytest.approx(1.0))
    assert report["training"]["first"] == 4.0
    assert report["checkpoints"]["first"]["digest"] == audit["checkpoints"]["unlearned"]["digest"]
    markdown = service.get(remediation["links"]["report"], headers={"Accept": "text/markdown"}).text
    assert "RECOVERED, now ROBUST" in markdown
    assert "| rtn-int4 | KnowMem forget | 90.0 | 88.0 | 11.0 |" in markdown
    service.refused(service.get(remediation["links"]["report"], headers={"Accept": "image/png"}), 406, "not_acceptable")


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"method": "magic"}, "unknown_method", None),
        ({"loss": "magic"}, "unknown_loss", None),
        ({"hyperparameters": {"alfa": 8}}, "invalid_request", "hyperparameters.alfa"),
        ({"hyperparameters": {"learning_rate": 0}}, "invalid_request", "hyperparameters.learning_rate"),
        ({"hyperparameters": {"stop": {"every": "x"}}}, "invalid_request", "hyperparameters.stop.every"),
        ({"method": "auto", "hyperparameters": {"alfa": 8}}, "invalid_request", "hyperparameters.alfa"),
        ({"budget": {"trials": 2}}, "invalid_request", "budget"),
        ({"method": "auto", "budget": {"trials": 0}}, "invalid_request", "budget.trials"),
        # What no worker could count to: the first is no time at all, the second more draws than memory holds.
        ({"method": "auto", "budget": {"minutes": 1e300}}, "invalid_request", "budget.minutes"),
        ({"hyperparameters": {"max_steps": 10**12}}, "invalid_request", "hyperparameters.max_steps"),
        ({"metod": "sure"}, "invalid_request", "metod"),
    ],
)
def test_a_request_that_means_nothing_is_refused_with_its_place(
    service: Service, change: dict[str, Any], code: str, field: str | None
) -> None:
    audit = failed_audit(service)
    response = service.post(f"/v1/audits/{audit['id']}/remediations", json=SURE | change)
    problem = service.refused(response, 422, code)
    if field is not None:
        assert [found["field"] for found in problem["errors"]] == [field]


def test_a_forget_set_without_raw_texts_is_refused_with_the_file(service: Service) -> None:
    path = "/v1/audits/{}/remediations".format
    nothing = failed_audit(service, BUNDLE)
    problem = service.refused(service.post(path(nothing["id"]), json=SURE), 422, "forget_set_incomplete")
    assert [found["file"] for found in problem["errors"]] == ["raw/forget.json"]
    half = failed_audit(service, BUNDLE | {"raw/forget.json": TEXTS["raw/forget.json"]})
    problem = service.refused(service.post(path(half["id"]), json=SURE), 422, "forget_set_incomplete")
    assert [found["file"] for found in problem["errors"]] == ["raw/retain.json"]
    assert "npo_gdr" in problem["detail"]
    begin(service, half, loss="npo")


def test_only_a_finished_audit_with_its_forget_set_leads_to_a_remediation(service: Service) -> None:
    path = "/v1/audits/{}/remediations".format
    service.refused(service.post(path("nothing"), json=SURE), 404, "not_found")
    waiting = service.audit(forget_set=service.forget_set(BUNDLE | TEXTS))
    service.refused(service.post(path(waiting["id"]), json=SURE), 409, "conflict")
    drain()
    assert service.http.delete(f"/v1/forget-sets/{waiting['forget_set']['id']}").status_code in (200, 204)
    service.refused(service.post(path(waiting["id"]), json=SURE), 410, "forget_set_purged")


def test_it_needs_its_own_scope(service: Service) -> None:
    audit = failed_audit(service)
    path = f"/v1/audits/{audit['id']}/remediations"
    ci = {"Authorization": f"Bearer {service.key(Scope.AUDITS_WRITE, Scope.AUDITS_READ)}"}
    service.refused(service.post(path, json=SURE, headers=ci), 403, "scope_missing")
    own = {"Authorization": f"Bearer {service.key(Scope.REMEDIATIONS_WRITE)}"}
    remediation = service.made(service.post(path, json=SURE, headers=own), 202)
    for forbidden in (
        service.post(remediation["links"]["cancel"], headers=ci),
        service.http.delete(remediation["links"]["model"], headers=ci),
    ):
        service.refused(forbidden, 403, "scope_missing")
    assert service.get(remediation["links"]["self"], headers=ci).status_code == 200


def test_the_same_request_sent_twice_makes_one_remediation(service: Service) -> None:
    audit = failed_audit(service)
    path, headers = f"/v1/audits/{audit['id']}/remediations", {"Idempotency-Key": "build-1"}
    first = service.made(service.post(path, json=SURE, headers=headers), 202)
    again = service.post(path, json=SURE, headers=headers)
    assert service.made(again, 202)["id"] == first["id"]
    assert again.headers["Idempotency-Replayed"] == "true"
    other = SURE | {"loss": "npo"}
    service.refused(service.post(path, json=other, headers=headers), 422, "idempotency_key_reused")
    drain()
    assert service.made(service.post(path, json=SURE, headers=headers), 200)["state"] == "finished"
    assert len(service.get("/v1/remediations").json()["items"]) == 1


def test_remediations_are_listed_in_pages(service: Service) -> None:
    audit, other = failed_audit(service), failed_audit(service)
    ids = [begin(service, audit)["id"] for _ in range(3)]
    begin(service, other)
    listed = service.get("/v1/remediations", params={"audit": audit["id"], "limit": 2}).json()
    assert [item["id"] for item in listed["items"]] == ids[:0:-1]
    assert [item["id"] for item in service.get(listed["next"]).json()["items"]] == ids[:1]
    assert service.get("/v1/remediations", params={"state": "finished"}).json()["items"] == []
