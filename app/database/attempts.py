"""What a worker holds while it works on a row: the attempt, which is its fencing token, and the work to do."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from app.database.models import Leased


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt at a row: a fencing token, so that only its holder may write."""

    table: type[Leased]
    id: str
    attempt: int
    worker: str


@dataclass(frozen=True, slots=True)
class Claim(Attempt):
    """An attempt at an evaluation, and what to do."""

    checkpoint_id: str
    checkpoint_uri: str
    checkpoint_digest: str
    precision: str
    forget_set_digest: str
    metrics: tuple[str, ...]
    seed: int
    interface: tuple[str, str | None] | None = None
    """URI and interface digest of the original, where this is another checkpoint."""
    base: tuple[str, str] | None = None
    """URI and digest of what an artifact is said to be of."""

    @property
    def evaluation_id(self) -> str:
        """The row."""
        return self.id


@dataclass(frozen=True, slots=True)
class DiagnosisClaim(Attempt):
    """An attempt at a diagnosis, and what to compare."""

    original: tuple[str, str]
    """URI and digest."""
    unlearned: tuple[str, str]
    precisions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrialClaim(Attempt):
    """An attempt at a trial, and what to train."""

    original: tuple[str, str]
    """URI and digest."""
    forget_set_digest: str
    recipe: dict[str, Any]
    """A methods.Recipe."""


class Progress(NamedTuple):
    """How far the work on a row has come."""

    stage: str | None
    done: int
    total: int


class Beat(StrEnum):
    """What a worker learns from a beat."""

    GO_ON = "go_on"
    CANCEL = "cancel"
    LOST = "lost"
