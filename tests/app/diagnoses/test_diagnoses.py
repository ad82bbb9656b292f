"""Diagnoses over HTTP: what a request becomes, what is shared, what is refused, what the worker makes of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.database import engine as db
from app.database import leases
from app.database.models import Diagnosis
from app.evidence.diagnosis import DEFAULT_DIAGNOSED, NOTE
from app.settings import settings
from tests.support.engine.weights import save
from tests.support.service import Service
from tests.support.stand_ins.quick import evaluate
from worker.loop import runner

PATH = "/v1/diagnoses"


@pytest.fixture
def pair(service: Service) -> dict[str, str]:
    """Two checkpoints with one linear layer each, a tenth of whose weights moved."""
    torch.manual_seed(0)
    original = torch.randn(16, 128)
    moved = torch.where(torch.rand(16, 128) < 0.1, original + 0.01, original)
    number = len(list(service.folder.iterdir()))
    return {
        role: str(save(service.folder / f"{role}-{number}", {"a": weight}))
        for role, weight in (("original", original), ("unlearned", moved))
    }


def test_a_diagnosis_is_accepted_made_and_read(service: Service, pair: dict[str, str]) -> None:
    response = service.post(PATH, json=pair)
    accepted = service.made(response, 202)
    assert response.headers["Location"] == accepted["links"]["self"]
    assert int(response.headers["Retry-After"]) > 0
    assert (accepted["state"], accepted["result"]) == ("queued", None)
    assert accepted["precisions"] == list(DEFAULT_DIAGNOSED)
    assert accepted["original"]["uri"] == pair["original"]
    assert runner.drain(evaluate) == 0
    read = service.get(accepted["links"]["self"])
    done = read.json()
    assert (done["state"], done["attempt"], done["done"]) == ("succeeded", 1, done["total"])
    assert "Retry-After" not in read.headers
    result = done["result"]
    assert result["note"] == NOTE
    assert result["original"]["digest"] == done["original"]["digest"]
    assert [module["module"] for module in result["modules"]] == ["layers.0.a"]
    assert result["overall"]["changed"] == pytest.approx(0.1, abs=0.03)
    assert [rounding["precision"] for rounding in result["overall"]["roundings"]] == list(DEFAULT_DIAGNOSED)


def test_the_same_pair_at_the_same_precisions_is_the_same_diagnosis(service: Service, pair: dict[str, str]) -> None:
    first = service.made(service.post(PATH, json=pair), 202)
    shuffled = [*reversed(DEFAULT_DIAGNOSED), "rtn-int8"]
    assert service.made(service.post(PATH, json=pair | {"precisions": shuffled}), 202)["id"] == first["id"]
    other = service.made(service.post(PATH, json=pair | {"precisions": ["rtn-int4"]}), 202)
    assert other["id"] != first["id"]
    runner.drain(evaluate)
    again = service.made(service.post(PATH, json=pair), 200)
    assert (again["id"], again["attempt"]) == (first["id"], 1)
    ids = {role: first[role]["id"] for role in ("original", "unlearned")}
    assert service.made(service.post(PATH, json=ids), 200)["id"] == first["id"]
    swapped = {"original": ids["unlearned"], "unlearned": ids["original"]}
    assert service.made(service.post(PATH, json=swapped), 202)["id"] != first["id"]


def test_a_diagnosis_goes_before_every_evaluation(service: Service, pair: dict[str, str]) -> None:
    service.audit()
    wanted = service.made(service.post(PATH, json=pair), 202)["id"]

    def look(*args: Any, **kwargs: Any) -> Any:
        assert service.get(f"{PATH}/{wanted}").json()["state"] == "succeeded"
        return evaluate(*args, **kwargs)

    assert runner.drain(look) == 4


def test_one_whose_files_change_fails_with_the_reason_and_is_tried_again(
    service: Service, pair: dict[str, str]
) -> None:
    first = service.made(service.post(PATH, json=pair), 202)
    config = Path(pair["unlearned"]) / "config.json"
    before = config.read_bytes()
    config.write_text(json.dumps(json.loads(before) | {"note": 7}))
    runner.drain(evaluate)
    failed = service.get(first["links"]["self"]).json()
    assert (failed["state"], failed["error_code"], failed["result"]) == ("failed", "checkpoint_changed", None)
    config.write_bytes(before)
    again = service.made(service.post(PATH, json=pair), 202)
    assert (again["id"], again["state"], again["error_code"]) == (first["id"], "queued", None)
    runner.drain(evaluate)
    assert service.get(first["links"]["self"]).json()["state"] == "succeeded"


def test_a_diagnosis_whose_worker_vanished_is_taken_over_and_the_first_cannot_finish_it(
    service: Service, pair: dict[str, str]
) -> None:
    wanted = service.made(service.post(PATH, json=pair), 202)["id"]
    with db.transaction() as session:
        lost = leases.claim_diagnosis(session, "vanished")
        assert lost is not None
        session.get_one(Diagnosis, wanted).lease_until = 0
    runner.drain(evaluate)
    with db.transaction() as session:
        assert not leases.finish(session, lost, {"schema": "stale"})
    done = service.get(f"{PATH}/{wanted}").json()
    assert (done["state"], done["attempt"]) == ("succeeded", 2)
    with db.reading() as session:
        assert session.get_one(Diagnosis, wanted).commits == 1


def test_a_diagnosis_that_used_up_its_tries_is_ended(service: Service, pair: dict[str, str]) -> None:
    wanted = service.made(service.post(PATH, json=pair), 202)["id"]
    with db.transaction() as session:
        row = session.get_one(Diagnosis, wanted)
        row.state, row.tries, row.lease_until = leases.RUNNING, settings().max_attempts, 0
    with db.transaction() as session:
        assert leases.due(session) == 0
        assert leases.end_one_lost(session) == wanted
    assert service.get(f"{PATH}/{wanted}").json()["error_code"] == "worker_lost"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"precisions": ["rtn-int5"]}, "unknown_precision"),
        ({"precisions": ["full"]}, "precision_unavailable"),
        ({"precisions": []}, "invalid_request"),
        ({"retrained": "/x"}, "invalid_request"),
        ({"original": "/nowhere"}, "checkpoint_outside_roots"),
    ],
)
def test_what_cannot_be_diagnosed_is_refused(
    service: Service, pair: dict[str, str], change: dict[str, Any], code: str
) -> None:
    service.refused(service.post(PATH, json=pair | change), 422, code)


def test_a_pair_that_does_not_match_is_refused_with_its_differences(service: Service, pair: dict[str, str]) -> None:
    other = save(service.folder / "other", {"b": torch.ones(16, 128)})
    problem = service.refused(service.post(PATH, json=pair | {"unlearned": str(other)}), 422, "pair_mismatch")
    assert {found["field"] for found in problem["errors"]} == {"tensors.layers.0.a.weight", "tensors.layers.0.b.weight"}


def test_there_is_no_diagnosis_by_another_id(service: Service) -> None:
    service.refused(service.get(f"{PATH}/nobody"), 404, "not_found")


def test_an_audit_has_its_pair_diagnosed_and_its_report_tells(service: Service, pair: dict[str, str]) -> None:
    audit = service.audit(**pair)
    diagnosis = service.get(audit["links"]["diagnosis"]).json()
    assert diagnosis["state"] == "queued"
    assert service.made(service.post(PATH, json=pair), 202)["id"] == diagnosis["id"]
    runner.drain(evaluate)
    assert service.get(audit["links"]["self"]).json()["state"] == "finished"
    report = service.get(audit["links"]["report"]).json()
    assert report["diagnosis"] == service.get(audit["links"]["diagnosis"]).json()["result"]
    markdown = service.get(audit["links"]["report"], params={"format": "markdown"}).text
    assert "## Where the update lives" in markdown
    assert "| layers.0.a |" in markdown
    assert "never decides a verdict" in markdown


def test_a_second_audit_of_the_same_pair_takes_the_same_diagnosis(service: Service, pair: dict[str, str]) -> None:
    first = service.audit(**pair)
    runner.drain(evaluate)
    second = service.audit(**pair, forget_set=first["forget_set"]["id"])
    assert second["state"] == "finished"
    assert second["links"]["diagnosis"] == first["links"]["diagnosis"]


def test_a_pair_that_cannot_be_diagnosed_is_audited_all_the_same(service: Service) -> None:
    audit = service.audit()  # of checkpoints without any linear layer
    runner.drain(evaluate)
    report = service.get(audit["links"]["report"]).json()
    assert report["diagnosis"]["code"] == "checkpoint_unsupported"
    markdown = service.get(audit["links"]["report"], params={"format": "markdown"}).text
    assert "The weights were not compared" in markdown
    # Without it no audit is robust, so the next one tries again, even if it waits for nothing else.
    ids = {role: found["id"] for role, found in audit["checkpoints"].items()}
    again = service.audit(**ids, forget_set=audit["forget_set"]["id"])
    assert again["state"] == "queued"
    runner.drain(evaluate)
    assert service.get(again["links"]["self"]).json()["state"] == "finished"
