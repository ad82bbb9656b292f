"""The checkpoints that a request names by role: found, opened, checked against each other, registered."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from sqlalchemy.orm import Session

from app.checkpoints import pair, service
from app.checkpoints.sources import Source, open_checkpoint
from app.database.models import Checkpoint
from app.errors import AppError, CheckpointRefused, FieldProblem
from app.evidence.evaluation import ROLES, Role
from app.http.request_types import RequestModel

K = TypeVar("K", bound=str)


def locate(session: Session, body: RequestModel) -> dict[Role, tuple[str, str | None]]:
    """Role -> the URI to open, and the digest that must be found there (None: whatever is there).

    The request has a field for each role that it knows.
    """
    located: dict[Role, tuple[str, str | None]] = {}
    for role in ROLES:
        reference = getattr(body, role, None)
        if reference is None:
            continue
        with naming(role):
            row = service.find(session, reference)
        located[role] = (row.uri, row.digest) if row else (reference, None)
    return located


def open_all(located: Mapping[Role, tuple[str, str | None]], allowed: Sequence[str] = ()) -> dict[Role, Source]:
    """The checkpoints' files, checked one by one and against each other; touches no database.

    Args:
        located: from `locate`.
        allowed: the policy's `allowed_differences`.

    Raises:
        CheckpointRefused: naming the role; `checkpoint_changed` when a registered checkpoint's files have changed.
        InvalidRequest: `pair_mismatch`.
    """
    opened: dict[Role, Source] = {}
    for role, (uri, digest) in located.items():
        with naming(role):
            opened[role] = open_expected(uri, digest)
    for role in ROLES[1:]:
        if role in opened:
            pair.check_pair(opened["original"].files, opened[role].files, allowed)
    return opened


def open_expected(uri: str, digest: str | None, *, quantized: bool = False) -> Source:
    """The checkpoint at a URI, which must have the digest that it was registered with (None: whatever is there)."""
    source = open_checkpoint(uri, quantized=quantized)
    if digest is not None and source.digest != digest:
        raise CheckpointRefused(
            "checkpoint_changed", f"{uri} was registered as {digest} and is now {source.digest}; give its path"
        )
    return source


class naming:  # noqa: N801 - reads as a statement: with naming(role)
    """Adds to a refusal which role or artifact of the request it is about."""

    def __init__(self, role: str) -> None:
        self.role = role

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, AppError):
            error.detail = f"{self.role}: {error.detail}"
            error.errors = error.errors or [FieldProblem(field=self.role, message=error.detail)]


def register(session: Session, sources: Mapping[K, Source]) -> dict[K, Checkpoint]:
    """The checkpoints' rows by role (or whatever names them), added where they are new."""
    # In one order for all: two audits of the same two new checkpoints in swapped roles must not deadlock.
    by_place = sorted(sources.items(), key=lambda item: (item[1].digest, item[1].uri))
    rows = {role: service.register(session, source)[0] for role, source in by_place}
    return {role: rows[role] for role in sources}
