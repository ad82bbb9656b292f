"""Audits over HTTP: what a request becomes, what is shared, what is refused."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from app import queue
from app.database import engine as db
from app.database.models import Audit, Evaluation
from app.settings import settings
from tests.support.checkpoints import write_checkpoint
from tests.support.service import BUNDLE, QA, Service
from tests.support.stand_ins.quick import diagnose, evaluate
from worker.loop import runner

PATH = "/v1/audits"


def count(model: type[db.Base]) -> int:
    with db.reading() as session:
        return session.scalar(sa.select(sa.func.count()).select_from(model)) or 0


def test_an_audit_is_accepted_with_all_that_it_will_run(service: Service) -> None:
    body = service.audit_body(name="release", plan={"precisions": ["rtn-int4", "rtn-int4"]})
    response = service.post(PATH, json=body)
    audit = service.made(response, 202)
    assert response.headers["Location"] == audit["links"]["self"]
    assert int(response.headers["Retry-After"]) > 0
    assert (audit["name"], audit["state"], audit["verdict"]) == ("release", "queued", None)
    assert audit["plan"]["precisions"] == ["full", "rtn-int4"]
    assert "full" in audit["plan"]["note"]
    assert audit["plan"]["metrics"] == ["verbmem", "knowmem_forget", "privleak", "knowmem_retain"]
    assert set(audit["plan"]["left_out"]) == {"verbmem", "privleak"}
    assert [(part["role"], part["precision"]) for part in audit["parts"]] == [
        ("original", "full"),
        ("unlearned", "full"),
        ("original", "rtn-int4"),
        ("unlearned", "rtn-int4"),
    ]
    assert {(part["state"], part["attempt"], part["reused"]) for part in audit["parts"]} == {("queued", 0, False)}
    assert audit["policy"]["excluded_recovery"]["verbmem"] == 0.25
    assert audit["policy"]["recovery_margin"] == 0.1
    assert service.get(audit["links"]["self"]).json() == audit


def test_metrics_may_be_named_with_hyphens_and_sampling_is_left_out_only_where_it_was_asked_for(
    service: Service,
) -> None:
    audit = service.audit(plan={"precisions": ["full"], "metrics": ["verbmem-sampled", "knowmem-forget"]})
    assert audit["plan"]["metrics"] == ["knowmem_forget", "verbmem_sampled"]
    assert "verbmem/forget.json" in audit["plan"]["left_out"]["verbmem_sampled"]
    with_passages = BUNDLE | {"verbmem/forget.json": [{"prompt": "Belma painted", "gt": "a mill"}]}
    sampled = service.audit(
        plan={"precisions": ["full"], "metrics": ["verbmem-sampled", "knowmem-forget"]},
        forget_set=service.forget_set(with_passages),
    )
    assert set(sampled["plan"]["left_out"]) == {"verbmem", "privleak", "knowmem_retain"}
    with db.reading() as session:
        asked = {tuple(row.metrics) for row in session.scalars(sa.select(Evaluation))}
    assert asked == {("knowmem_forget",), ("knowmem_forget", "verbmem_sampled")}


def test_checkpoints_are_named_by_path_id_or_digest(service: Service) -> None:
    original = service.made(service.post("/v1/checkpoints", json={"uri": service.checkpoint()}))
    unlearned = service.made(service.post("/v1/checkpoints", json={"uri": service.checkpoint()}))
    forget_set = service.get(f"/v1/forget-sets/{service.forget_set()}").json()
    audit = service.audit(
        original=original["id"],
        unlearned=unlearned["digest"],
        retrained=service.checkpoint(),
        forget_set=forget_set["digest"],
    )
    assert audit["checkpoints"]["original"]["id"] == original["id"]
    assert audit["checkpoints"]["unlearned"]["id"] == unlearned["id"]
    assert audit["forget_set"]["id"] == forget_set["id"]
    assert len(audit["parts"]) == 6


def test_an_audit_runs_to_its_report(service: Service) -> None:
    audit = service.audit()
    assert runner.drain(evaluate) == 4
    after = service.get(audit["links"]["self"]).json()
    assert after["state"] == "finished"
    assert after["verdict"]
    assert {(part["state"], part["attempt"]) for part in after["parts"]} == {("succeeded", 1)}
    assert "Retry-After" not in service.get(audit["links"]["self"]).headers


def test_a_second_audit_with_the_same_original_runs_only_the_new_models_evaluations(service: Service) -> None:
    first = service.audit()
    runner.drain(evaluate)
    second = service.audit(original=first["checkpoints"]["original"]["id"], forget_set=first["forget_set"]["id"])
    assert {part["role"]: part["reused"] for part in second["parts"]} == {"original": True, "unlearned": False}
    assert count(Evaluation) == 6
    assert runner.drain(evaluate) == 2


def test_an_audit_whose_evaluations_all_exist_is_finished_at_once(service: Service) -> None:
    first = service.audit()
    runner.drain(evaluate, diagnose)
    ids = {role: found["id"] for role, found in first["checkpoints"].items()}
    second = service.audit(**ids, forget_set=first["forget_set"]["id"], policy={"recovery_margin": 0.2})
    assert second["state"] == "finished"
    assert all(part["reused"] for part in second["parts"])
    report = service.get(second["links"]["report"]).json()
    assert report["policy"]["recovery_margin"] == 0.2
    assert all(evidence["reused"] for evidence in report["evidence"])


def test_the_same_checkpoint_can_be_both_sides(service: Service) -> None:
    same = service.checkpoint()
    audit = service.audit(original=same, unlearned=same)
    assert len(audit["parts"]) == 4
    assert len({part["evaluation"] for part in audit["parts"]}) == 2


def test_failed_evaluations_are_tried_again_by_the_next_audit_that_needs_them(service: Service, models: Path) -> None:
    first = service.audit()
    broken = Path(first["checkpoints"]["unlearned"]["uri"])
    (broken / "behaviour").write_text("error")
    runner.drain(evaluate)
    ended = service.get(first["links"]["self"]).json()
    assert (ended["state"], ended["verdict"]) == ("finished", "inconclusive")
    assert {part["state"] for part in ended["parts"]} == {"succeeded", "failed"}
    (broken / "behaviour").unlink()
    # Moved meanwhile: the same content is the same evaluation, read from where it is now.
    moved = broken.rename(models / "moved-for-retry")
    ids = {"original": first["checkpoints"]["original"]["id"], "unlearned": str(moved)}
    second = service.audit(**ids, forget_set=first["forget_set"]["id"])
    assert {part["role"]: part["state"] for part in second["parts"]} == {"original": "succeeded", "unlearned": "queued"}
    assert runner.drain(evaluate) == 2
    retried = [part for part in service.get(second["links"]["self"]).json()["parts"] if part["role"] == "unlearned"]
    assert {(part["state"], part["attempt"] > 1, part["error_code"]) for part in retried} == {("succeeded", True, None)}


def test_audits_submitted_at_once_share_their_evaluations(service: Service) -> None:
    body = service.audit_body()
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda _: service.post(PATH, json=body), range(8)))
    audits = [service.made(response, 202) for response in responses]
    assert len({audit["id"] for audit in audits}) == 8
    assert count(Evaluation) == 4
    assert runner.drain(evaluate) == 4
    assert {service.get(audit["links"]["self"]).json()["state"] for audit in audits} == {"finished"}


@pytest.mark.parametrize(
    ("plan", "code", "known"),
    [
        ({"precisions": ["rtn-int5"]}, "unknown_precision", "rtn-int4-g128"),
        ({"metrics": ["bleu"]}, "unknown_metric", "privleak"),
        ({"metrics": ["knowmem_retain"]}, "nothing_to_measure", "knowmem_forget"),
        ({"metrics": ["verbmem"]}, "nothing_to_measure", "verbmem/forget.json"),
        ({"precisions": []}, "invalid_request", "plan.precisions"),
    ],
)
def test_an_unknown_precision_or_metric_is_refused_naming_the_known(
    service: Service, plan: dict[str, list[str]], code: str, known: str
) -> None:
    problem = service.refused(service.post(PATH, json=service.audit_body(plan=plan)), 422, code)
    assert known in problem["detail"]
    assert count(Audit) == count(Evaluation) == 0


@pytest.mark.parametrize(
    "change", [{"architecture": "GPT2LMHeadModel"}, {"vocab_size": 16}, {"tokenizer": '{"model": 1}'}]
)
@pytest.mark.parametrize("role", ["unlearned", "retrained"])
def test_a_mismatched_pair_is_refused(service: Service, models: Path, change: dict[str, str], role: str) -> None:
    other = service.checkpoint(**change)
    problem = service.refused(service.post(PATH, json=service.audit_body(**{role: other})), 422, "pair_mismatch")
    assert problem["errors"]
    assert count(Audit) == 0


def test_a_refused_checkpoint_is_named_by_its_role(service: Service, models: Path, tmp_path: Path) -> None:
    body = service.audit_body(unlearned=str(models / "nothing"))
    problem = service.refused(service.post(PATH, json=body), 422, "checkpoint_missing")
    assert problem["detail"].startswith("unlearned: ")
    assert problem["errors"][0]["field"] == "unlearned"
    body = service.audit_body(original=str(write_checkpoint(tmp_path / "outside")))
    service.refused(service.post(PATH, json=body), 422, "checkpoint_outside_roots")
    nobody = "01987a3c-5a0e-7cc4-a6a5-6a6d0f6b8c11"
    service.refused(service.post(PATH, json=service.audit_body(original=nobody)), 422, "checkpoint_missing")
    unknown = "sha256:" + "0" * 64
    service.refused(service.post(PATH, json=service.audit_body(original=unknown)), 422, "checkpoint_missing")
    assert count(Audit) == 0


def test_a_registered_checkpoint_whose_files_changed_is_refused(service: Service) -> None:
    made = service.made(service.post("/v1/checkpoints", json={"uri": service.checkpoint()}))
    weights = Path(made["uri"]) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    service.refused(service.post(PATH, json=service.audit_body(original=made["id"])), 422, "checkpoint_changed")


def test_an_unknown_forget_set_is_refused(service: Service) -> None:
    for reference in ("nothing", "sha256:" + "0" * 64):
        service.refused(service.post(PATH, json=service.audit_body(forget_set=reference)), 422, "forget_set_missing")


def test_a_policy_takes_what_it_knows_and_nothing_else(service: Service) -> None:
    problem = service.refused(
        service.post(PATH, json=service.audit_body(policy={"recovery_margin": 2, "margin": 1})), 422, "invalid_request"
    )
    assert {error["field"] for error in problem["errors"]} == {"policy.recovery_margin", "policy.margin"}


def test_audits_are_listed_by_state_verdict_and_checkpoint(service: Service) -> None:
    done = service.audit()
    runner.drain(evaluate)
    verdict = service.get(done["links"]["self"]).json()["verdict"]
    waiting = service.audit(original=done["checkpoints"]["original"]["id"], forget_set=done["forget_set"]["id"])

    def listed(**query: str) -> list[str]:
        return [item["id"] for item in service.get(PATH, params=query).json()["items"]]

    assert listed() == [waiting["id"], done["id"]]
    assert listed(state="finished") == [done["id"]]
    assert listed(verdict=verdict) == [done["id"]]
    assert listed(checkpoint=done["checkpoints"]["original"]["digest"]) == [waiting["id"], done["id"]]
    assert listed(checkpoint=done["checkpoints"]["unlearned"]["id"]) == [done["id"]]
    assert listed(state="cancelled") == []
    page = service.get(PATH, params={"limit": 1, "checkpoint": done["checkpoints"]["original"]["id"]}).json()
    assert [item["id"] for item in service.get(page["next"]).json()["items"]] == [done["id"]]
    service.refused(service.get(PATH, params={"state": "done"}), 422, "invalid_request")
    service.refused(service.get(f"{PATH}/nothing"), 404, "not_found")


def test_an_audit_is_accepted_while_the_broker_is_down(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings(), "broker_url", "redis://127.0.0.1:1/0")
    queue._sender.cache_clear()
    try:
        audit = service.audit()
        assert service.get("/readyz").json() == {"status": "ready", "database": "ready", "broker": "unreachable"}
    finally:
        queue._sender.cache_clear()
    assert runner.drain(evaluate) == 4
    assert service.get(audit["links"]["self"]).json()["state"] == "finished"


def test_long_texts_and_many_items_are_accepted_as_they_are(service: Service) -> None:
    long = [{"question": "word " * 20_000, "answer": "a"}]
    audit = service.audit(forget_set=service.forget_set(BUNDLE | {"knowmem/forget_qa.json": QA + long}))
    assert audit["state"] == "queued"
