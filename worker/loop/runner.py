"""Claim, beat, evaluate, finish: the life of an attempt, in a process of the worker's pool."""

import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog
from sqlalchemy.orm import Session

from app.catalog.metrics import MetricId
from app.checkpoints.format.digests import Expected, check_digest
from app.database import leases
from app.database.attempts import Attempt, Claim, DiagnosisClaim, TrialClaim
from app.errors import AppError, Unavailable
from app.evidence.diagnosis import Diagnosis
from app.evidence.evaluation import Evaluation
from app.forget_sets.bundle import Bundle
from app.queue import ring
from app.settings import settings
from app.storage import model_store
from worker.attempts import remediations, trial
from worker.attempts.heartbeat import Heartbeat, Reason, Stopped
from worker.attempts.inputs import device, read_bundle
from worker.attempts.transactions import in_transaction
from worker.loop import capabilities, outcomes

SHUTDOWN = threading.Event()
"""Set when this process must end: it claims nothing more and gives its lease back."""

_passed_on = float("-inf")

QUOTE_LENGTH = 20
DETAIL_LENGTH = 500

log = structlog.get_logger(__name__)

ReportProgress = Callable[[str, int, int], None]
Result = TypeVar("Result")


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
        calibration_file: Path | None,
        uri: str,
        interface: Path | None,
        base: Path | None,
        expected: Expected,
    ) -> Evaluation: ...


class Diagnose(Protocol):
    """The engine's entry point for diagnoses, `worker.engine.diagnosis.overlap.diagnose`."""

    def __call__(
        self,
        original: Path,
        unlearned: Path,
        precisions: Sequence[str],
        progress: ReportProgress,
    ) -> Diagnosis: ...


def drain(
    evaluate: Evaluate | None = None, diagnose: Diagnose | None = None, unlearn: trial.Unlearn | None = None
) -> int:
    """Claim and run diagnoses, evaluations and trials until none is left; returns how many evaluations were run."""
    worker = f"{socket.gethostname()}:{os.getpid()}"
    count, last = 0, None
    while not SHUTDOWN.is_set():
        claim, more = in_transaction(lambda session, prefer=last: _claim(session, worker, prefer))  # type: ignore[misc]
        if claim is None:
            if more:
                _pass_on()
            break
        if more:
            ring()  # others may be idle; this one is busy now
        if isinstance(claim, DiagnosisClaim):
            run_diagnosis(claim, diagnose)
            continue
        if isinstance(claim, TrialClaim):
            run_trial(claim, unlearn)
            continue
        run(claim, evaluate)
        count, last = count + 1, claim.checkpoint_id
    return count


def run(claim: Claim, evaluate: Evaluate | None = None) -> None:
    """One attempt at an evaluation, from the claim to its end; raises only what the database raises."""
    with structlog.contextvars.bound_contextvars(evaluation=claim.id, attempt=claim.attempt, precision=claim.precision):
        texts: list[str] = []
        _run(claim, lambda progress: _evaluate(claim, evaluate or _engine(), progress, texts), outcomes.finish, texts)


def run_diagnosis(claim: DiagnosisClaim, diagnose: Diagnose | None = None) -> None:
    """One attempt at a diagnosis, in the same way."""
    with structlog.contextvars.bound_contextvars(diagnosis=claim.id, attempt=claim.attempt):
        _run(claim, lambda progress: _diagnose(claim, diagnose or _diagnosing(), progress), outcomes.finish, [])


def run_trial(claim: TrialClaim, unlearn: trial.Unlearn | None = None) -> None:
    """One attempt at a trial, in the same way."""
    with structlog.contextvars.bound_contextvars(trial=claim.id, attempt=claim.attempt):
        texts: list[str] = []
        remediations.advance()  # it runs now
        _run(
            claim,
            lambda progress: trial.train(claim, unlearn or _unlearning(), progress, texts),
            outcomes.finish_trial,
            texts,
        )


def _run(
    claim: Attempt,
    work: Callable[[ReportProgress], Result],
    finish: Callable[[Any, Result], bool],
    texts: list[str],
) -> None:
    _attempt(claim, work, finish, texts)
    remediations.advance()


def _attempt(
    claim: Attempt,
    work: Callable[[ReportProgress], Result],
    finish: Callable[[Any, Result], bool],
    texts: list[str],
) -> None:
    log.info("attempt started")
    try:
        with Heartbeat(claim, SHUTDOWN, abandon) as heartbeat:
            result = work(heartbeat.progress)
    except Stopped as stopped:
        end_stopped(claim, stopped.reason)
    except AppError as error:
        log.warning("attempt failed", code=error.code, detail=error.detail)
        outcomes.fail(claim, error.code, error.detail, retry=isinstance(error, Unavailable))
    except Exception as error:
        code, detail = _explain(error, texts)
        # Not the exception itself: its message, or the local variables in a rich traceback, may quote the forget set.
        frames = "".join(traceback.format_tb(error.__traceback__))
        log.error("attempt failed", code=code, detail=detail, traceback=frames)
        outcomes.fail(claim, code, detail)
    else:
        if finish(claim, result):
            log.info("attempt finished")
        else:
            log.warning("another attempt owns the row; the result is dropped")


def end_stopped(claim: Attempt, reason: Reason, patience: float = 15.0) -> None:
    """Write the outcome of an attempt that was told to stop."""
    if reason is Reason.STALLED:
        detail = f"no progress for {settings().stall_seconds:g} s (LETHE_STALL_SECONDS)"
        state = outcomes.fail(claim, "too_slow", detail, retry=True, patience=patience)
    elif reason is Reason.LOST:
        state = None
    else:
        state = outcomes.release(claim, patience=patience)
    log.info("attempt stopped", reason=reason, state=state or "another attempt's")


def abandon(claim: Attempt, reason: Reason) -> None:
    """As `end_stopped`, for a process that is about to end: quickly, and waking another worker."""
    end_stopped(claim, reason, patience=2.0)
    ring()


def _claim(
    session: Session, worker: str, prefer: str | None
) -> tuple[Claim | DiagnosisClaim | TrialClaim | None, bool]:
    # A diagnosis takes seconds and no GPU, and may be wanted before the evaluations, which take hours. A trial takes
    # longest and leads to more evaluations, so those that are already there go first.
    claim = (
        leases.claim_diagnosis(session, worker)
        or leases.claim(session, worker, prefer, leave=capabilities.left_to_others(session))
        or leases.claim_trial(session, worker)
    )
    return claim, leases.due(session) > 0


def _pass_on() -> None:
    """Ring again: the work that is left is for another worker, and this one has consumed the ring.

    Only rarely, because it may consume that ring too; a worker that can do the work also rings when it reconciles.
    """
    global _passed_on
    if time.monotonic() - _passed_on > settings().reconcile_seconds / 2:
        _passed_on = time.monotonic()
        ring()


def _engine() -> Evaluate:
    # Imported here, not at the top: it imports torch, which takes seconds, and the pool expects its processes to be up
    # sooner.
    from worker.engine.evaluate import evaluate

    return evaluate


def _diagnosing() -> Diagnose:
    from worker.engine.diagnosis.overlap import diagnose

    return diagnose


def _unlearning() -> trial.Unlearn:
    from worker.engine.unlearning.unlearn import unlearn

    return unlearn


def _evaluate(claim: Claim, evaluate: Evaluate, progress: ReportProgress, texts: list[str]) -> Evaluation:
    """Evaluate exactly what was claimed, or fail: the engine hashes what it reads. Adds the forget set to `texts`."""
    progress("verify", 0, 1)
    path = model_store.local_path(claim.checkpoint_uri, claim.checkpoint_digest, progress)
    base = None if claim.base is None else model_store.local_path(*claim.base, progress)
    interface = None if claim.interface is None else model_store.local_path(claim.interface[0], None, progress)
    bundle = read_bundle(claim.forget_set_digest)
    texts.append(json.dumps(asdict(bundle), ensure_ascii=False))
    progress("verify", 1, 1)
    return evaluate(
        path,
        claim.precision,
        bundle,
        metrics=tuple(claim.metrics),
        device=device(),
        seed=claim.seed,
        progress=progress,
        calibration_file=settings().calibration_file,
        uri=claim.checkpoint_uri,
        interface=interface,
        base=base,
        expected=Expected(
            checkpoint=claim.checkpoint_digest,
            interface=claim.interface[1] if claim.interface else None,
            base=claim.base[1] if claim.base else None,
        ),
    )


def _diagnose(claim: DiagnosisClaim, diagnose: Diagnose, progress: ReportProgress) -> Diagnosis:
    """Compare the pair; the bytes that were read must be those that were claimed."""
    original, unlearned = (
        model_store.local_path(uri, expected, progress) for uri, expected in (claim.original, claim.unlearned)
    )
    result = diagnose(original, unlearned, claim.precisions, progress)
    check_digest(original, result.original.digest, claim.original[1])
    check_digest(unlearned, result.unlearned.digest, claim.unlearned[1])
    return result


def _explain(error: Exception, texts: Sequence[str]) -> tuple[str, str]:
    """The code and detail of an unexpected error, with its message only if that does not quote the forget set."""
    kind, message = type(error).__name__, str(error)[:DETAIL_LENGTH]
    # Recognised by name: only the engine may import torch, whose CUDA and CPU allocators raise these.
    if kind == "OutOfMemoryError" or isinstance(error, MemoryError) or "can't allocate memory" in message:
        return "out_of_memory", f"{kind}: {message}"
    pieces = (message[start : start + QUOTE_LENGTH] for start in range(max(1, len(message) - QUOTE_LENGTH + 1)))
    if any(len(piece) == QUOTE_LENGTH and piece in text for piece in pieces for text in texts):
        message = "(the message is withheld: it quotes the forget set)"
    return "engine_error", f"{kind}: {message}"
