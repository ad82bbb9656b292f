"""API keys and their scopes."""

import hashlib
import secrets
from collections.abc import Callable, Sequence
from typing import Annotated

import sqlalchemy as sa
import structlog
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.orm import Session

from app.database.engine import reading, utcnow
from app.database.models import ApiKey
from app.errors import InvalidRequest, NotAllowed, NotAuthenticated, NotFound
from app.http.scopes import Scope

PREFIX = "lethe_"
_SHOWN = 12


def create_key(session: Session, name: str, scopes: Sequence[str]) -> tuple[ApiKey, str]:
    """Create a key; the returned secret is shown once and never again.

    Raises:
        InvalidRequest: for a blank name, an unknown scope, or no scope.
    """
    if not name.strip():
        raise InvalidRequest("invalid_request", "a key needs a name that says what it is for")
    unknown = [scope for scope in scopes if scope not in set(Scope)]
    if unknown or not scopes:
        known = ", ".join(Scope)
        what = f"there is no scope {unknown[0]!r}" if unknown else "a key needs at least one scope"
        raise InvalidRequest("invalid_request", f"{what}; known: {known}")
    secret = PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(
        name=name,
        prefix=secret[:_SHOWN],
        digest=_digest(secret),
        scopes=[scope.value for scope in Scope if scope.value in scopes],
    )
    session.add(key)
    session.flush()
    return key, secret


def revoke_key(session: Session, key_id: str) -> ApiKey:
    """Revoke a key for good.

    Raises:
        NotFound: when there is no such key.
    """
    key = session.get(ApiKey, key_id)
    if key is None:
        raise NotFound("not_found", f"there is no API key {key_id}")
    if key.revoked_at is None:
        key.revoked_at = utcnow()
    return key


def list_keys(session: Session) -> list[ApiKey]:
    """All keys, newest first, including revoked ones."""
    return list(session.scalars(sa.select(ApiKey).order_by(ApiKey.id.desc())))


def authenticate(session: Session, secret: str | None) -> ApiKey:
    """The key with this secret.

    Raises:
        NotAuthenticated: `key_missing`, `key_invalid`, `key_revoked`.
    """
    if not secret:
        raise NotAuthenticated("key_missing", "send an API key: Authorization: Bearer lethe_...")
    key = session.scalar(sa.select(ApiKey).where(ApiKey.digest == _digest(secret)))
    if key is None:
        raise NotAuthenticated("key_invalid", "the API key is not known here; create one with `lethe keys create`")
    if key.revoked_at is not None:
        raise NotAuthenticated("key_revoked", f"this API key was revoked at {key.revoked_at.isoformat()}")
    return key


def can(key: ApiKey, scope: str) -> bool:
    """Whether the key has the scope."""
    return scope in key.scopes or Scope.ADMIN in key.scopes


def check(key: ApiKey, scope: str) -> None:
    """Raises NotAllowed where `can` is false."""
    if not can(key, scope):
        has = ", ".join(key.scopes)
        raise NotAllowed("scope_missing", f"this needs the scope {scope}; the key {key.prefix}… has {has}")


_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="API key",
    description="`Authorization: Bearer lethe_…`. Scopes: " + ", ".join(f"`{scope}`" for scope in Scope),
)


def requires(scope: str) -> Callable[..., ApiKey]:
    """A dependency: the request's key, which must have the scope."""

    def checked(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
    ) -> ApiKey:
        with reading() as session:
            key = authenticate(session, credentials.credentials if credentials else None)
        check(key, scope)
        request.state.api_key = key.id
        structlog.contextvars.bind_contextvars(api_key=key.prefix)
        return key

    return checked


CanRead = Annotated[ApiKey, Depends(requires(Scope.AUDITS_READ))]
CanWrite = Annotated[ApiKey, Depends(requires(Scope.AUDITS_WRITE))]
CanRemediate = Annotated[ApiKey, Depends(requires(Scope.REMEDIATIONS_WRITE))]
IsAdmin = Annotated[ApiKey, Depends(requires(Scope.ADMIN))]


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
