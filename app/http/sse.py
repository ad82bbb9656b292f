"""Following something as server-sent events: its events, each with an id to resume after, and progress between them."""

import json
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import anyio.to_thread
from fastapi import Header
from fastapi.sse import ServerSentEvent
from sqlalchemy.orm import Session

from app.database.engine import reading

POLL_SECONDS = 0.5
RETRY_MS = 2000
LAST_ID = 2**31 - 1
"""The largest id that the column can hold."""

LastEventId = Annotated[
    str | None,
    Header(description="Resume after this event; browsers send it by themselves.", pattern="^[0-9]{0,18}$"),
]


class Event(NamedTuple):
    """Something that happened."""

    id: int
    kind: str
    data: Mapping[str, Any]


class Seen(NamedTuple):
    """What is followed, at one moment."""

    over: bool
    """Whether all is over. Read before the events: one that is seen late is sent late, but the last is never missed."""
    events: Sequence[Event]
    progress: Mapping[Hashable, Mapping[str, Any]]
    """The progress of everything that runs."""


def resume_after(last_event_id: str | None) -> int:
    """The id in the `Last-Event-ID` header; 0 where there is none."""
    return min(int(last_event_id or 0), LAST_ID)


async def follow(look: Callable[[Session, int], Seen], after: int) -> AsyncIterator[ServerSentEvent]:
    """Events after the id `after`, and progress whenever it changes; ends once all is over and was sent.

    Args:
        look: Returns what there is to see now, with the events after the given id.
    """
    told: dict[Hashable, str] = {}
    retry: int | None = RETRY_MS
    while True:
        # No connection is held while sleeping: a thousand followers must not exhaust the pool.
        seen = await anyio.to_thread.run_sync(_look, look, after)
        for event in seen.events:
            after = event.id
            yield ServerSentEvent(id=str(event.id), event=event.kind, data=event.data, retry=retry)
            retry = None
        if seen.over:
            return
        for which, progress in seen.progress.items():
            if told.get(which) != (now := json.dumps(progress)):
                told[which] = now
                yield ServerSentEvent(event="progress", data=progress, retry=retry)
                retry = None
        await anyio.sleep(POLL_SECONDS)


def _look(look: Callable[[Session, int], Seen], after: int) -> Seen:
    with reading() as session:
        return look(session, after)
