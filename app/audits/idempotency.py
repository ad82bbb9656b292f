"""Which audits were created by requests with an `Idempotency-Key`."""

from sqlalchemy.orm import Session

from app.database.models import Audit, IdempotencyKey
from app.http import idempotency
from app.http.idempotency import Created, Creation


def find(session: Session, request: Creation) -> str | None:
    """The id of the audit that the same request created earlier, if it came with a key.

    Raises:
        InvalidRequest: `idempotency_key_reused` when another request came with the key.
    """
    return idempotency.same(request, _made_before(session, request))


def add_once(session: Session, audit: Audit, request: Creation) -> str | None:
    """Add the audit, under the key if there is one; `app.http.idempotency.add_once` says what it returns and raises."""

    def add() -> None:
        session.add(audit)
        if request.key is not None:
            session.flush()
            session.add(
                IdempotencyKey(
                    api_key_id=request.api_key_id, key=request.key, body_digest=request.digest, audit_id=audit.id
                )
            )

    return idempotency.add_once(session, request, add, lambda: _made_before(session, request))


def _made_before(session: Session, request: Creation) -> Created | None:
    row = session.get(IdempotencyKey, (request.api_key_id, request.key)) if request.key is not None else None
    return None if row is None else Created("audit", row.audit_id, row.body_digest)
