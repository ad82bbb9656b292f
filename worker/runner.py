"""Claim, beat, evaluate, finish: the life of an attempt, in a process of the worker's pool."""

import json
import os
import socket
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, cast

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from app import leases
from app.checkpoints.files import digest
from app.db import reading
from app.errors import AppError, CheckpointRefused, Gone
from app.forget_sets.bundle import Bundle, parse
from app.leases import Attempt, Claim, DiagnosisClaim
from app.models import ForgetSet, ForgetSetFile
from app.queue import ring
from app.reports.diagnosis import Diagnosis
from app.reports.schemas import Evaluation, Frozen, MetricId
from app.settings import settings
from worker import outcomes
from worker.heartbeat import Heartbeat, Reason, Stopped
from worker.transactions import in_transaction

SHUTDOWN = threading.Event()
"""Set when this process shall end: no further claim, and the lease is given back."""

QUOTE_LENGTH = 20
DETAIL_LENGTH = 500

log = structlog.get_logger(__name__)

ReportProgress = Callable[[str, int, int], None]


class Evaluate(Protocol):
    """The engine's entry point, `worker.engine.evaluate.evaluate`."""

    def __call__(
        self,
        checkpoint: Path,
        precision: str,
        bundle: Bundle,
        *,
        metrics: Sequence[MetricId],
        device: str | None,
        seed: int,
        progress: ReportProgress,
        digest_cache: Path | None,
        calibration_file: Path | None,
        base: Path | None,
    ) -> Evaluation: ...


class Diagnose(Protocol):
    """The engine's other one, `worker.engine.precision.overlap.diagnose`."""

    def __call__(
        self,
        original: Path,
        unlearned: Path,
        precisions: Sequence[str],
        progress: ReportProgress,
        *,
        digest_cache: Path | None,
    ) -> Diagnosis: ...


def drain(evaluate: Evaluate | None = None, diagnose: Diagnose | None = None) -> int:
    """Claim and run diagnoses and evaluations until none is left; how many evaluations were run."""
    worker = f"{socket.gethostname()}:{os.getpid()}"
    count, last = 0, None
    while not SHUTDOWN.is_set():
        claim, more = in_transaction(lambda session, prefer=last: _claim(session, worker, prefer))  # type: ignore[misc]
        if claim is None:
            break
        if more:
            ring()  # others may be idle; this one is busy now
        if isinstance(claim, DiagnosisClaim):
            run_diagnosis(claim, diagnose)
            continue
        run(claim, evaluate)
        count, last = count + 1, claim.checkpoint_id
    return count


def run(claim: Claim, evaluate: Evaluate | None = None) -> None:
    """One attempt at an evaluation, from the claim to its end; raises nothing but what the database raises."""
    with structlog.contextvars.bound_contextvars(evaluation=claim.id, attempt=claim.attempt, precision=claim.precision):
        texts: list[str] = []
        _run(claim, lambda progress: _evaluate(claim, evaluate or _engine(), progress, texts), texts)


def run_diagnosis(claim: DiagnosisClaim, diagnose: Diagnose | None = None) -> None:
    """One attempt at a diagnosis, likewise."""
    with structlog.contextvars.bound_contextvars(diagnosis=claim.id, attempt=claim.attempt):
        _run(claim, lambda progress: _diagnose(claim, diagnose or _diagnosing(), progress), [])


def _run(claim: Attempt, work: Callable[[ReportProgress], Frozen], texts: list[str]) -> None:
    log.info("attempt started")
    try:
        with Heartbeat(claim, SHUTDOWN, abandon) as heartbeat:
            result = work(heartbeat.progress)
    except Stopped as stopped:
        end_stopped(claim, stopped.reason)
    except AppError as error:
        log.warning("attempt failed", code=error.code, detail=error.detail)
        outcomes.fail(claim, error.code, error.detail)
    except Exception as error:
        code, detail = _explain(error, texts)
        # Not the exception itself: its message, or the locals of a rich traceback, may quote the forget set.
        frames = "".join(traceback.format_tb(error.__traceback__))
        log.error("attempt failed", code=code, detail=detail, traceback=frames)
        outcomes.fail(claim, code, detail)
    else:
        if outcomes.finish(claim, result):
            log.info("attempt finished")
        else:
            log.warning("another attempt owns the row, the result is dropped")


def end_stopped(claim: Attempt, reason: Reason, patience: float = 15.0) -> None:
    """Write what became of an attempt that was told to stop."""
    if reason is Reason.STALLED:
        detail = f"no progress for {settings().stall_seconds:g} s (LETHE_STALL_SECONDS)"
        state = outcomes.fail(claim, "too_slow", detail, retry=True, patience=patience)
    elif reason is Reason.LOST:
        state = None
    else:
        state = outcomes.release(claim, patience=patience)
    log.info("attempt stopped", reason=reason, state=state or "another attempt's")


def abandon(claim: Attempt, reason: Reason) -> None:
    """As `end_stopped`, by a process that is about to end: in little time, and waking another."""
    end_stopped(claim, reason, patience=2.0)
    ring()


def _claim(session: Session, worker: str, prefer: str | None) -> tuple[Claim | DiagnosisClaim | None, bool]:
    # A diagnosis costs seconds and no GPU; what it explains may be wanted before the evaluations, which cost hours.
    claim = leases.claim_diagnosis(session, worker) or leases.claim(session, worker, prefer)
    return claim, claim is not None and leases.due(session) > 0


def _engine() -> Evaluate:
    # Here, not at the top: it imports torch, which takes seconds, and the pool expects its processes to be up in few.
    from worker.engine.evaluate import evaluate

    return evaluate


def _diagnosing() -> Diagnose:
    from worker.engine.precision.overlap import diagnose

    return diagnose


def _evaluate(claim: Claim, evaluate: Evaluate, progress: ReportProgress, texts: list[str]) -> Evaluation:
    """Check that the inputs still are what was asked about, then measure. Leaves the forget set's text in `texts`."""
    progress("verify", 0, 1)
    path, digests = Path(claim.checkpoint_uri), settings().data_dir / "digests.sqlite"
    read = [(path, claim.checkpoint_digest)]
    if claim.base is not None:
        read.append((Path(claim.base[0]), claim.base[1]))
    for place, expected in read:
        _check_unchanged(place, expected, digests)
    bundle = parse(_forget_set(claim.forget_set_digest))
    texts.append(json.dumps(asdict(bundle), ensure_ascii=False))
    progress("verify", 1, 1)
    result = evaluate(
        path,
        claim.precision,
        bundle,
        metrics=tuple(cast(MetricId, metric) for metric in claim.metrics),
        device=None if settings().device == "auto" else settings().device,
        seed=claim.seed,
        progress=progress,
        digest_cache=digests,
        calibration_file=settings().calibration_file,
        base=Path(claim.base[0]) if claim.base else None,
    )
    for place, expected in read:
        _check_unchanged(place, expected, digests)  # nor while it was read; unchanged files cost a stat
    return result


def _diagnose(claim: DiagnosisClaim, diagnose: Diagnose, progress: ReportProgress) -> Diagnosis:
    """Compare the pair, checked likewise to be what was asked about."""
    digests = settings().data_dir / "digests.sqlite"
    pair = [(Path(uri), expected) for uri, expected in (claim.original, claim.unlearned)]
    for number, (path, expected) in enumerate(pair):
        progress("verify", number, len(pair))
        _check_unchanged(path, expected, digests)
    result = diagnose(pair[0][0], pair[1][0], claim.precisions, progress, digest_cache=digests)
    for path, expected in pair:
        _check_unchanged(path, expected, digests)
    return result


def _check_unchanged(path: Path, expected: str, digests: Path) -> None:
    found = digest(path, cache=digests)
    if found != expected:
        raise CheckpointRefused(
            "checkpoint_changed",
            f"the files in {path} are no longer those that were registered ({expected}, now {found});"
            " register the directory again and submit anew",
        )


def _forget_set(digest_: str) -> dict[str, bytes]:
    with reading() as session:
        rows = session.execute(
            sa.select(ForgetSetFile.name, ForgetSetFile.content)
            .join(ForgetSet, ForgetSet.id == ForgetSetFile.forget_set_id)
            .where(ForgetSet.digest == digest_, ForgetSet.purged_at.is_(None))
        ).all()
    if not rows:
        raise Gone("forget_set_purged", "the forget set's content was purged before this evaluation ran")
    return {row.name: row.content for row in rows}


def _explain(error: Exception, texts: Sequence[str]) -> tuple[str, str]:
    """The code and the detail of an unforeseen error; its message only where it does not quote the forget set."""
    kind, message = type(error).__name__, str(error)[:DETAIL_LENGTH]
    # By name: only the engine may import torch, whose CUDA and CPU allocators raise these.
    if kind == "OutOfMemoryError" or isinstance(error, MemoryError) or "can't allocate memory" in message:
        return "out_of_memory", f"{kind}: {message}"
    pieces = (message[start : start + QUOTE_LENGTH] for start in range(max(1, len(message) - QUOTE_LENGTH + 1)))
    if any(len(piece) == QUOTE_LENGTH and piece in text for piece in pieces for text in texts):
        message = "(the message is withheld: it quotes the forget set)"
    return "engine_error", f"{kind}: {message}"
