"""What followers of an audit see: its state events, and the progress of its evaluations."""

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.audits import service, views
from app.database.models import AuditEvent
from app.database.states import LIVE_AUDITS
from app.http.sse import Event, Seen


def look(session: Session, audit_id: str, after: int) -> Seen:
    """The audit's state events after that id, and the progress of its evaluations."""
    statement = sa.select(AuditEvent).where(AuditEvent.audit_id == audit_id, AuditEvent.id > after)
    row = service.get(session, audit_id)
    return Seen(
        over=row.state not in LIVE_AUDITS,
        events=[
            Event(event.id, event.kind, {"audit": audit_id, "state": event.kind, **event.data})
            for event in session.scalars(statement.order_by(AuditEvent.id))
        ],
        progress={
            (part.role, part.precision): views.part(part).model_dump(mode="json", exclude={"error_detail"})
            for part in row.parts
        },
    )
