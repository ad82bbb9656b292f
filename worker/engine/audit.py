"""A whole audit without a service: evaluate the pair at every precision, and judge."""

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from app.checkpoints import digests, files
from app.errors import AppError, EvaluationCancelled
from app.forget_sets.bundle import Bundle
from app.plans import DEFAULT_PRECISIONS, check_names, fit
from app.reports.policy import Policy
from app.reports.report import AuditInfo, Evidence, Report, make_report
from app.reports.schemas import METRICS, CheckpointInfo, Role
from app.reports.verdict import Failure
from worker.engine.evaluate import evaluate

log = logging.getLogger(__name__)

Progress = Callable[[Role, str, str, int, int], None]
"""role, precision, stage, done, total"""


def audit(
    original: Path,
    unlearned: Path,
    bundle: Bundle,
    *,
    retrained: Path | None = None,
    precisions: Sequence[str] = DEFAULT_PRECISIONS,
    metrics: Sequence[str] = METRICS,
    policy: Policy | None = None,
    device: str | None = None,
    seed: int = 0,
    name: str | None = None,
    progress: Progress | None = None,
    calibration_file: Path | None = None,
) -> Report:
    """Audit a pair; the report is the one that the service would write.

    Args:
        original, unlearned, retrained: checkpoint directories; the same architecture, vocabulary and tokenizer.
        precisions: names of `app.precisions` or of `app.plans`; `full` is put in front when it is missing.
        policy: the thresholds; the default policy when left out.
        device: "cpu" or "cuda"; the GPU when there is one.
        calibration_file: the operator's texts, for precisions that end in `@file`.

    Raises:
        CheckpointRefused, InvalidRequest: before anything is evaluated. An evaluation that fails later is part of the
            report, as evidence that is missing.
    """
    started = datetime.now(UTC)
    plan = fit(check_names(precisions, metrics), bundle.unavailable)
    paths: dict[Role, Path] = {"original": original, "unlearned": unlearned}
    if retrained is not None:
        paths["retrained"] = retrained
    checkpoints = _check(paths)
    evidence: list[Evidence] = []
    for role, path in paths.items():
        for precision in plan.precisions:
            same = next((e for e in evidence if _same(e, checkpoints, role, precision)), None)
            if same is not None:
                evidence.append(same.model_copy(update={"role": role, "reused": True}))
                continue
            try:
                result = evaluate(
                    path,
                    precision,
                    bundle,
                    metrics=plan.metrics,
                    device=device,
                    seed=seed,
                    progress=_for(progress, role, precision),
                    calibration_file=calibration_file,
                )
                evidence.append(Evidence(role=role, precision=precision, evaluation=result))
            except EvaluationCancelled:
                raise
            except AppError as error:
                failure = Failure(code=error.code, detail=error.detail)
                evidence.append(Evidence(role=role, precision=precision, failure=failure))
            except Exception as error:
                # Whatever a model brings up inside transformers or a quantizer: the other evaluations still count.
                log.exception("%s at %s", role, precision)
                failure = Failure(code="engine_error", detail=f"{type(error).__name__}: {error}")
                evidence.append(Evidence(role=role, precision=precision, failure=failure))
    return make_report(
        AuditInfo(
            id=None,
            name=name or f"{original.name} / {unlearned.name}",
            created_at=started,
            finished_at=datetime.now(UTC),
        ),
        checkpoints,
        bundle.info(),
        plan,
        policy or Policy(),
        evidence,
    )


def _check(paths: Mapping[Role, Path]) -> dict[Role, CheckpointInfo]:
    found = {role: files.inspect(path) for role, path in paths.items()}
    for role, other in found.items():
        if role != "original":
            files.check_pair(found["original"], other)
    return {
        role: CheckpointInfo(
            uri=str(inspected.path),
            digest=digests.digest(inspected.path, cache=None),
            architecture=inspected.architecture,
            parameters=inspected.parameters,
            dtype=inspected.dtype,
        )
        for role, inspected in found.items()
    }


def _same(evidence: Evidence, checkpoints: Mapping[Role, CheckpointInfo], role: Role, precision: str) -> bool:
    """Whether this evaluation was done before, under another role: its content address is the same."""
    return evidence.precision == precision and checkpoints[evidence.role].digest == checkpoints[role].digest


def _for(progress: Progress | None, role: Role, precision: str) -> Callable[[str, int, int], None] | None:
    if progress is None:
        return None
    return lambda stage, done, total: progress(role, precision, stage, done, total)
