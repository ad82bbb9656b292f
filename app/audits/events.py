"""Following an audit: its state events, each with an id to resume after, and the progress between them."""

import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import anyio.to_thread
import sqlalchemy as sa
from fastapi.sse import ServerSentEvent
from sqlalchemy.orm import Session

from app.audits import service, views
from app.database.engine import reading
from app.database.models import AuditEvent
from app.database.states import LIVE_AUDITS, AuditState

POLL_SECONDS = 0.5
RETRY_MS = 2000
LAST_ID = 2**31 - 1
"""The largest id that the column can hold."""


class Seen(NamedTuple):
    """An audit at one moment."""

    state: AuditState
    events: list[tuple[int, str, dict[str, Any]]]
    parts: list[dict[str, Any]]


def look(session: Session, audit_id: str, after: int) -> Seen:
    """The audit's state events after that id, and where its evaluations are."""
    statement = sa.select(AuditEvent).where(AuditEvent.audit_id == audit_id, AuditEvent.id > after)
    row = service.get(session, audit_id)
    return Seen(
        state=row.state,
        # Read after the state: an event that is seen late is sent late, but the final one is never missed.
        events=[(event.id, event.kind, event.data) for event in session.scalars(statement.order_by(AuditEvent.id))],
        parts=[views.part(item).model_dump(mode="json", exclude={"error_detail"}) for item in row.parts],
    )


async def follow(audit_id: str, after: int) -> AsyncIterator[ServerSentEvent]:
    """State events after `after`, progress whenever it changes; ends after the event that ends the audit."""
    shown: dict[tuple[str, str], str] = {}
    first = True
    while True:
        # No connection is held while sleeping: a thousand followers must not exhaust the pool.
        seen = await anyio.to_thread.run_sync(_look, audit_id, after)
        for event_id, kind, data in seen.events:
            after = event_id
            body = {"audit": audit_id, "state": kind, **data}
            yield ServerSentEvent(id=str(event_id), event=kind, data=body, retry=RETRY_MS if first else None)
            first = False
        for part in seen.parts:
            which, now = (part["role"], part["precision"]), json.dumps(part)
            if shown.get(which) != now and seen.state in LIVE_AUDITS:
                shown[which] = now
                yield ServerSentEvent(event="progress", data=part, retry=RETRY_MS if first else None)
                first = False
        if seen.state not in LIVE_AUDITS:
            return
        await anyio.sleep(POLL_SECONDS)


def _look(audit_id: str, after: int) -> Seen:
    with reading() as session:
        return look(session, audit_id, after)
