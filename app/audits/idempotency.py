"""The `Idempotency-Key` of requests that make an audit: the same one sent twice makes one audit."""

import hashlib
import json
from typing import Annotated

from fastapi import Header
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.database.models import Audit, IdempotencyKey
from app.errors import InvalidRequest
from app.http.fields import RequestModel

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


def digest(body: RequestModel, audit_id: str | None = None) -> str:
    """SHA-256 over the request with its defaults filled in, so that formatting makes no difference.

    Args:
        audit_id: The audit that the request was sent to, if it was sent to one.
    """
    content = body.model_dump(mode="json") if audit_id is None else {"audit": audit_id, **body.model_dump(mode="json")}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


def find(session: Session, api_key_id: str, key: str | None, wanted: str) -> str | None:
    """The id of the audit that the request of this digest made before, if it came with a key.

    Raises:
        InvalidRequest: `idempotency_key_reused` when another request came with the key.
    """
    row = session.get(IdempotencyKey, (api_key_id, key)) if key is not None else None
    if row is None:
        return None
    if row.body_digest != wanted:
        raise InvalidRequest(
            "idempotency_key_reused",
            f"Idempotency-Key {key!r} came before with another body, for audit {row.audit_id}; take a new key",
        )
    return row.audit_id


def add_once(session: Session, audit: Audit, api_key_id: str, key: str | None, wanted: str) -> str | None:
    """Add the audit, under the key if there is one.

    Returns:
        None; or, when a concurrent request of the same key was first, the id of its audit, and nothing was added.

    Raises:
        InvalidRequest: `idempotency_key_reused` when that was another request.
    """
    if key is None:
        session.add(audit)
        session.flush()
        return None
    try:
        # The insert waits for a concurrent one of the same key, so that a second audit never exists.
        with session.begin_nested():
            session.add(audit)
            session.flush()
            session.add(IdempotencyKey(api_key_id=api_key_id, key=key, body_digest=wanted, audit_id=audit.id))
    except IntegrityError:
        made_before = find(session, api_key_id, key, wanted)
        assert made_before is not None
        return made_before
    return None
