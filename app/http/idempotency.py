"""The `Idempotency-Key` of requests that create something: the same one sent twice creates it once."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from fastapi import Header, Response
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app import canonical
from app.errors import InvalidRequest
from app.http.problems import look_again
from app.http.request_types import RequestModel

KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern="^[!-~]*$",
        description="Choose a new one for each creation. The same key and body give the same resource again.",
        examples=["ci-build-4711"],
    ),
]


def headers(noun: str) -> dict[str, dict[str, Any]]:
    """The headers of a response to a creation, for the API's description; `answered` sets them."""
    return {
        "Location": {"description": f"The {noun}.", "schema": {"type": "string"}},
        "Retry-After": {"description": "Seconds to wait before polling.", "schema": {"type": "integer"}},
        "Idempotency-Replayed": {
            "description": f"`true` when an earlier request created this {noun}.",
            "schema": {"type": "string"},
        },
    }


class Creation(NamedTuple):
    """A request to create something."""

    api_key_id: str
    key: str | None
    """Its Idempotency-Key."""
    digest: str
    """The digest of what it asks for (`digest`)."""


class Created(NamedTuple):
    """What an earlier request with the same key created."""

    what: str
    """The kind of resource, such as `audit`."""
    id: str
    digest: str


def digest(body: RequestModel, **sent_to: str) -> str:
    """SHA-256 over a request with its defaults filled in, so that formatting makes no difference.

    Args:
        sent_to: Kind and id of the resource that the request was sent to, if any.
    """
    return canonical.digest_by_python({**sent_to, **body.model_dump(mode="json")})


def same(request: Creation, before: Created | None) -> str | None:
    """The id of what the same request created earlier; None when its key is new.

    Raises:
        InvalidRequest: `idempotency_key_reused` when a different request came with the key.
    """
    if before is None:
        return None
    if before.digest != request.digest:
        raise InvalidRequest(
            "idempotency_key_reused",
            f"Idempotency-Key {request.key!r} was already used by a different request, which created {before.what}"
            f" {before.id}; use a new key",
        )
    return before.id


def add_once(
    session: Session, request: Creation, add: Callable[[], None], find: Callable[[], Created | None]
) -> str | None:
    """Add what is new; a unique index over API key and Idempotency-Key keeps it from being added twice.

    Args:
        add: Adds the rows to the session.
        find: Looks for what a request with the same key created.

    Returns:
        None; or, when a concurrent request with the same key was first, the id of what that one created. Then nothing
        was added.

    Raises:
        InvalidRequest: `idempotency_key_reused` when that was a different request.
    """
    try:
        # The insert waits for a concurrent one with the same key, so that there is never a second resource.
        with session.begin_nested():
            add()
            session.flush()
    except IntegrityError:
        if request.key is None or (before := same(request, find())) is None:
            raise
        return before
    return None


def answered(response: Response, location: str, *, replayed: bool, live: bool) -> None:
    """Set the headers that say where the resource is, whether an earlier request created it, and when to poll.

    Args:
        response: Has its route's status; becomes 200 where an earlier request created something that is over by now.
        live: Whether the resource still changes.
    """
    response.headers["Location"] = location
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"
    if live:
        look_again(response)
    elif replayed:
        response.status_code = 200
