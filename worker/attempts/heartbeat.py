"""The thread beside an evaluation: extends its lease, writes its progress, and tells it to stop."""

import os
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from types import TracebackType

import sqlalchemy as sa
import structlog

from app.database import leases
from app.database.attempts import Attempt, Beat, Progress
from app.settings import settings
from worker.attempts.transactions import in_transaction

WRITE_SECONDS = 1.0
"""Progress is written at most this often."""

log = structlog.get_logger(__name__)


class Reason(StrEnum):
    """Why an evaluation is told to stop."""

    CANCELLED = "cancelled"
    LOST = "lost"
    STALLED = "stalled"
    SHUTDOWN = "shutdown"


class Stopped(BaseException):
    """Raised by the engine's progress callback; not an Exception, so that no `except` in the engine catches it."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class Heartbeat:
    """Beats from `__enter__` to `__exit__`.

    An evaluation that was told to stop notices at its next progress. If it does not within `settings().stop_seconds`
    (it hangs, or a step is long), it is ended from here: `abandon` writes the outcome, then the process ends and the
    pool starts another.
    """

    def __init__(self, claim: Attempt, shutdown: threading.Event, abandon: Callable[[Attempt, Reason], None]) -> None:
        self._claim = claim
        self._shutdown = shutdown
        self._abandon = abandon
        self._progress = Progress(None, 0, 0)
        self._progressed_at = time.monotonic()
        self._reason: Reason | None = None
        self._told_at = 0.0
        self._over = threading.Event()
        # Held while the end is being written, so that only one of the evaluation and this thread writes it.
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._ending:
            self._over.set()
        self._thread.join()

    def progress(self, stage: str, done: int, total: int) -> None:
        """The engine's callback: note the progress; raises Stopped if the evaluation must stop."""
        self._progress = Progress(stage, done, total)
        self._progressed_at = time.monotonic()
        if self._reason is not None:
            raise Stopped(self._reason)

    def _run(self) -> None:
        beat_every, written = settings().beat_seconds, Progress(None, 0, 0)
        beaten_at = time.monotonic()
        while not self._over.wait(min(0.2, beat_every / 2)):
            now = time.monotonic()
            pause = WRITE_SECONDS if self._progress != written else beat_every
            if now - beaten_at >= min(pause, beat_every):
                written, beaten_at = self._progress, now
                self._learn(self._beat(written))
            if self._shutdown.is_set():
                self._learn(Reason.SHUTDOWN)
            elif now - self._progressed_at > settings().stall_seconds:
                self._learn(Reason.STALLED)
            if self._reason is not None and time.monotonic() - self._told_at > settings().stop_seconds:
                self._end_process(self._reason)

    def _beat(self, progress: Progress) -> Reason | None:
        try:
            beat = in_transaction(lambda session: leases.beat(session, self._claim, progress), patience=0)
        except sa.exc.SQLAlchemyError as error:
            # The lease is not lost until the database says so: it may be back before anyone else claims the row.
            log.warning("a heartbeat failed", error=type(error).__name__)
            return None
        return {Beat.GO_ON: None, Beat.CANCEL: Reason.CANCELLED, Beat.LOST: Reason.LOST}[beat]

    def _learn(self, reason: Reason | None) -> None:
        if self._reason is None and reason is not None:
            log.info("the evaluation is told to stop", reason=reason)
            self._told_at, self._reason = time.monotonic(), reason

    def _end_process(self, reason: Reason) -> None:
        with self._ending:
            if self._over.is_set():
                return
            log.warning("the evaluation did not stop; ending its process", reason=reason)
            try:
                self._abandon(self._claim, reason)
            finally:
                os._exit(os.EX_TEMPFAIL)
