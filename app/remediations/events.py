"""What followers of a remediation see: its events, and the progress of its trial."""

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.database.models import RemediationEvent
from app.database.states import LIVE_REMEDIATIONS
from app.http.sse import Event, Seen
from app.remediations import service, views


def look(session: Session, remediation_id: str, after: int) -> Seen:
    """The remediation's events after that id, and its current progress."""
    statement = sa.select(RemediationEvent).where(
        RemediationEvent.remediation_id == remediation_id, RemediationEvent.id > after
    )
    shown = views.remediation(service.get(session, remediation_id))
    last = shown.trials[-1]
    progress = {
        "trial": last.position,
        "of": len(shown.recipes),
        "stage": shown.stage,
        "done": shown.done,
        "total": shown.total,
        "loss": last.losses[-1].model_dump(mode="json") if last.losses else None,
    }
    return Seen(
        over=shown.state not in LIVE_REMEDIATIONS,
        events=[
            Event(event.id, event.kind, {"remediation": remediation_id, **event.data})
            for event in session.scalars(statement.order_by(RemediationEvent.id))
        ],
        progress={} if shown.stage is None else {"trial": progress},
    )
