"""Following a remediation: its events, each with an id to resume after, and the progress between them."""

import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import anyio.to_thread
import sqlalchemy as sa
from fastapi.sse import ServerSentEvent
from sqlalchemy.orm import Session

from app.audits.events import POLL_SECONDS, RETRY_MS
from app.database.engine import reading
from app.database.models import RemediationEvent
from app.database.states import LIVE_REMEDIATIONS, RemediationState
from app.remediations import service, views


class Seen(NamedTuple):
    """A remediation at one moment."""

    state: RemediationState
    events: list[tuple[int, str, dict[str, Any]]]
    progress: dict[str, Any]


def look(session: Session, remediation_id: str, after: int) -> Seen:
    """The remediation's events after that id, and what happens now."""
    statement = sa.select(RemediationEvent).where(
        RemediationEvent.remediation_id == remediation_id, RemediationEvent.id > after
    )
    shown = views.remediation(service.get(session, remediation_id))
    last = shown.trials[-1]
    return Seen(
        state=shown.state,
        # Read after the state: an event that is seen late is sent late, but the final one is never missed.
        events=[
            (event.id, event.kind, event.data) for event in session.scalars(statement.order_by(RemediationEvent.id))
        ],
        progress={
            "trial": last.position,
            "of": len(shown.recipes),
            "stage": shown.stage,
            "done": shown.done,
            "total": shown.total,
            "loss": last.losses[-1].model_dump(mode="json") if last.losses else None,
        },
    )


async def follow(remediation_id: str, after: int) -> AsyncIterator[ServerSentEvent]:
    """Events after `after`, progress whenever it changes; ends once the remediation is over and all was told."""
    shown = ""
    first = True
    while True:
        seen = await anyio.to_thread.run_sync(_look, remediation_id, after)
        for event_id, kind, data in seen.events:
            after = event_id
            body = {"remediation": remediation_id, **data}
            yield ServerSentEvent(id=str(event_id), event=kind, data=body, retry=RETRY_MS if first else None)
            first = False
        if seen.state not in LIVE_REMEDIATIONS:
            return
        if seen.progress["stage"] is not None and (now := json.dumps(seen.progress)) != shown:
            shown = now
            yield ServerSentEvent(event="progress", data=seen.progress, retry=RETRY_MS if first else None)
            first = False
        await anyio.sleep(POLL_SECONDS)


def _look(remediation_id: str, after: int) -> Seen:
    with reading() as session:
        return look(session, remediation_id, after)
