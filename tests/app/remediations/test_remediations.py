"""Remediations over HTTP: what a request becomes, what a worker makes of it, what is refused."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from app.catalog.methods import Recipe
from app.database import engine as db
from app.database.models import Trial
from app.http.auth import Scope
from app.settings import settings
from app.storage import model_store
from tests.support.service import BUNDLE, Service
from tests.support.unlearning import BROKEN, FORGOT_IN_FULL, ROBUST, Scores, Unlearning, evaluate, say
from tests.support.worker_service import diagnose
from worker.attempts import remediations
from worker.loop import runner

TEXTS = {"raw/forget.json": ["Belma painted the old mill in Lunden."], "raw/retain.json": ["Corin sold a red lantern."]}
SURE = {"method": "sure", "loss": "npo_gdr"}


def drain(unlearn: Unlearning | None = None) -> None:
    runner.drain(evaluate, diagnose, unlearn or Unlearning())


def failed_audit(service: Service, bundle: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A finished audit whose unlearned model remembers at 4 bits."""
    body = {
        "unlearned": say(service.checkpoint(), FORGOT_IN_FULL),
        "forget_set": service.forget_set(BUNDLE | TEXTS if bundle is None else bundle),
        "plan": {"precisions": ["full", "rtn-int8", "rtn-int4"]},
    }
    body |= changes
    # What the stand-in for the engine measures.
    body["plan"] = {"metrics": ["knowmem_forget", "knowmem_retain"]} | body["plan"]
    audit = service.audit(**body)
    drain()
    return service.get(audit["links"]["self"]).json()


def begin(service: Service, audit: Any, **body: Any) -> Any:
    return service.made(service.post(f"/v1/audits/{audit['id']}/remediations", json=SURE | body), 202)


def read(service: Service, remediation: Any) -> Any:
    return service.get(remediation["links"]["self"]).json()


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


def test_the_model_card_tells_the_verdict_and_does_not_touch_the_digest(service: Service) -> None:
    audit = failed_audit(service)
    remediation = begin(service, audit)
    drain()
    trial = read(service, remediation)["trials"][0]
    card = (Path(trial["model"]["uri"]) / "README.md").read_text()
    for said in (
        "sure over npo_gdr",
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
        patch.setattr(runner.leases, "claim", lambda *args, **kwargs: None)
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


def follow(service: Service, remediation: Any, after: str | None = None) -> list[dict[str, Any]]:
    headers = {} if after is None else {"Last-Event-ID": after}
    found: list[dict[str, Any]] = []
    fields: dict[str, Any] = {}
    for line in service.get(remediation["links"]["events"], headers=headers).text.splitlines():
        name, _, value = line.partition(": ")
        if line and name != "retry":
            fields[name] = json.loads(value) if name == "data" else value
        elif fields:
            found.append(fields)
            fields = {}
    return found


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


def by_percentile(scores: dict[float | str, Scores]) -> Any:
    """Scores by SURE's percentile, or by the method."""

    def of(recipe: Recipe) -> Scores:
        key = recipe.hyperparameters.saliency_percentile if recipe.method == "sure" else recipe.method
        return scores[key]

    return of


LADDER = [
    {"method": "sure", "hyperparameters": {"saliency_percentile": 90}},
    {"method": "sure", "hyperparameters": {"saliency_percentile": 75}},
    {"method": "lora"},
]


@pytest.fixture
def ladder(service: Service, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LETHE_REMEDIATION_LADDER", json.dumps(LADDER))
    settings.cache_clear()
    yield LADDER
    monkeypatch.undo()
    settings.cache_clear()


def test_the_ladder_can_be_seen(service: Service, ladder: Any) -> None:
    shown = service.get("/v1/remediations/ladder").json()["steps"]
    assert [step["method"] for step in shown] == ["sure", "sure", "lora"]
    assert shown[0]["hyperparameters"] == {"saliency_percentile": 90}


def test_auto_stops_at_the_first_robust_trial_and_audits_it_with_the_whole_plan(service: Service, ladder: Any) -> None:
    audit = failed_audit(service)
    remediation = begin(service, audit, method="auto", loss="ga_gdr", hyperparameters={"alpha": 3})
    assert len(remediation["recipes"]) == 3
    unlearning = Unlearning(by_percentile({90: FORGOT_IN_FULL, 75: ROBUST, "lora": ROBUST}))
    drain(unlearning)
    done = read(service, remediation)
    assert (done["state"], done["verdict"], done["chosen"]) == ("finished", "robust", 1)
    assert [recipe.loss for recipe in unlearning.recipes] == ["ga_gdr"] * 2
    assert {recipe.hyperparameters.alpha for recipe in unlearning.recipes} == {3}
    first, second = done["trials"]
    screening = service.get(f"/v1/audits/{first['screening']['id']}").json()
    assert screening["plan"]["precisions"] == ["full", "rtn-int4"]  # rtn-int8 did not fail
    assert (first["screening"]["verdict"], first["audit"]) == ("recovered", None)
    assert second["screening"]["verdict"] == second["audit"]["verdict"] == "robust"
    assert second["audit"]["total"] == 6
    # What is not returned is not kept; its digest is.
    remediations.clean()
    first, second = read(service, remediation)["trials"]
    assert first["model"]["deleted_at"] is not None
    assert first["model"]["digest"].startswith("sha256:")
    assert not Path(first["model"]["uri"]).exists()
    assert second["model"]["deleted_at"] is None
    assert Path(second["model"]["uri"]).exists()


def test_auto_goes_on_where_the_whole_plan_finds_what_the_screening_did_not(service: Service, ladder: Any) -> None:
    remediation = begin(service, failed_audit(service), method="auto")
    at_eight: Scores = ROBUST | {"rtn-int8": (80, 90)}
    drain(Unlearning(by_percentile({90: at_eight, 75: ROBUST, "lora": ROBUST})))
    done = read(service, remediation)
    assert [(trial["screening"]["verdict"], trial["audit"]["verdict"]) for trial in done["trials"]] == [
        ("robust", "recovered"),
        ("robust", "robust"),
    ]
    assert done["chosen"] == 1


def test_auto_returns_the_best_with_honest_words_where_none_is_robust(service: Service, ladder: Any) -> None:
    remediation = begin(service, failed_audit(service), method="auto")
    better: Scores = {"full": (10, 90), "rtn-int8": (10, 90), "rtn-int4": (40, 90)}
    drain(Unlearning(by_percentile({90: FORGOT_IN_FULL, 75: better, "lora": BROKEN})))
    done = read(service, remediation)
    assert (done["state"], done["verdict"], done["chosen"]) == ("finished", "recovered", 1)
    for said in ("No trial was robust", "1 collapsed", "2 recovered", "Trial 2", "44 %", "does not pass the audit"):
        assert said in done["sentence"], (said, done["sentence"])
    assert service.get(done["links"]["report"]).json()["trials"][2]["outcome"] == "collapsed"


def test_a_budget_ends_the_ladder_and_says_so(service: Service, ladder: Any) -> None:
    audit = failed_audit(service)
    by_trials = begin(service, audit, method="auto", budget={"trials": 1})
    by_time = begin(service, audit, method="auto", budget={"minutes": 1e-6})
    drain(Unlearning(lambda recipe: FORGOT_IN_FULL))
    for remediation in (by_trials, by_time):
        done = read(service, remediation)
        assert (done["verdict"], len(done["trials"])) == ("recovered", 1)
        assert "2 more were not tried" in done["sentence"]


def test_a_trial_that_fails_does_not_end_the_ladder(service: Service, ladder: Any) -> None:
    remediation = begin(service, failed_audit(service), method="auto")

    def scores(recipe: Recipe) -> Scores:
        if recipe.hyperparameters.saliency_percentile == 90 and recipe.method == "sure":
            raise MemoryError("all of it")
        return ROBUST

    drain(Unlearning(scores))
    done = read(service, remediation)
    assert (done["verdict"], done["trials"][0]["error_code"]) == ("robust", "out_of_memory")


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
