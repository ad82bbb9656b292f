"""Following an audit over server-sent events."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from app.database import engine as db
from tests.support.service import Service
from tests.support.stand_ins.quick import evaluate
from worker.loop import runner


class Event(NamedTuple):
    kind: str
    id: str | None
    data: dict[str, Any]


def follow(service: Service, audit: Any, after: str | None = None) -> Iterator[Event]:
    headers = {} if after is None else {"Last-Event-ID": after}
    with service.http.stream("GET", audit["links"]["events"], headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        for line in response.iter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif "event" in fields:
                yield Event(fields["event"], fields.get("id"), json.loads(fields["data"]))
                fields = {}


def in_background(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_follower_sees_the_progress_and_the_end(service: Service) -> None:
    audit = service.audit()
    events = follow(service, audit)
    seen = [next(events)]
    assert seen[0].kind == "queued"
    thread = in_background(lambda: runner.drain(lambda *a, **k: evaluate(*a, **k, pause=0.06)))
    seen += list(events)
    thread.join()
    states = [event for event in seen if event.kind != "progress"]
    assert [event.kind for event in states] == ["queued", "running", "finished"]
    assert [event.data["state"] for event in states] == ["queued", "running", "finished"]
    assert states[-1].data["verdict"] == service.get(audit["links"]["self"]).json()["verdict"]
    assert seen[-1].kind == "finished"
    progress = [event.data for event in seen if event.kind == "progress"]
    assert {(p["role"], p["precision"]) for p in progress} == {
        (part["role"], part["precision"]) for part in audit["parts"]
    }
    assert "running" in {p["state"] for p in progress}
    assert all(event.id is None for event in seen if event.kind == "progress")


def test_a_follower_resumes_after_the_last_event_it_saw(service: Service) -> None:
    audit = service.audit()
    runner.drain(evaluate)
    everything = list(follow(service, audit))
    assert [event.kind for event in everything] == ["queued", "running", "finished"]
    assert list(follow(service, audit, everything[0].id)) == everything[1:]
    assert list(follow(service, audit, everything[-1].id)) == []


def test_the_end_of_a_cancelled_audit_ends_the_stream(service: Service) -> None:
    audit = service.audit()
    events = follow(service, audit)
    next(events)
    service.post(audit["links"]["cancel"])
    assert [event.kind for event in events if event.kind != "progress"][-1] == "cancelled"


def test_followers_hold_no_connections(service: Service) -> None:
    audit = service.audit()
    followers = 12

    def first(_: int) -> Iterator[Event]:
        events = follow(service, audit)
        next(events)
        return events

    with ThreadPoolExecutor(followers) as pool:
        streams = list(pool.map(first, range(followers)))
        assert service.get(audit["links"]["self"]).status_code == 200
        service.post(audit["links"]["cancel"])
        last = list(pool.map(lambda events: list(events)[-1].kind, streams))
    assert last == ["cancelled"] * followers
    pool_status = db.engine().pool
    assert pool_status.checkedout() == 0  # type: ignore[attr-defined]  # of a QueuePool


def test_events_of_no_audit_are_a_problem_and_no_stream(service: Service) -> None:
    service.refused(service.get("/v1/audits/nothing/events"), 404, "not_found")
    service.refused(service.get("/v1/audits/nothing/events", headers={"Authorization": ""}), 401, "key_missing")
    audit = service.audit()
    response = service.get(audit["links"]["events"], headers={"Last-Event-ID": "x"})
    service.refused(response, 422, "invalid_request")


def test_an_event_id_that_never_was_shows_only_what_comes_after_it(service: Service) -> None:
    audit = service.audit()
    runner.drain(evaluate)
    assert list(follow(service, audit, "9" * 18)) == []
