"""The `Idempotency-Key` of `POST /v1/audits`: the same request sent twice makes one audit."""

import hashlib
import json
from typing import Annotated

from fastapi import Header
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.audits.schemas import NewAudit
from app.errors import InvalidRequest
from app.models import Audit, IdempotencyKey

KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern="^[!-~]*$",
        description="Yours to choose, once per creation. The same key with the same body gives the same answer again.",
        examples=["ci-build-4711"],
    ),
]


def digest(body: NewAudit) -> str:
    """SHA-256 over the request with its defaults filled in, so that formatting makes no difference."""
    canonical = json.dumps(body.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


def find(session: Session, api_key_id: str, key: str, body: NewAudit) -> str | None:
    """The id of the audit that this request made before.

    Raises:
        InvalidRequest: `idempotency_key_reused` when another body came with the key.
    """
    row = session.get(IdempotencyKey, (api_key_id, key))
    if row is None:
        return None
    if row.body_digest != digest(body):
        raise InvalidRequest(
            "idempotency_key_reused",
            f"Idempotency-Key {key!r} came before with another body, for audit {row.audit_id}; take a new key",
        )
    return row.audit_id


def add(session: Session, audit: Audit, api_key_id: str, key: str, body: NewAudit) -> bool:
    """Add the audit under the key; false, and nothing added, when a concurrent request did so first."""
    try:
        # The insert waits for a concurrent one of the same key, so that a second audit never exists.
        with session.begin_nested():
            session.add(audit)
            session.flush()
            session.add(IdempotencyKey(api_key_id=api_key_id, key=key, body_digest=digest(body), audit_id=audit.id))
    except IntegrityError:
        return False
    return True
