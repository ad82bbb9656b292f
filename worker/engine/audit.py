"""A whole audit without a service: evaluate the pair at every precision, and judge."""

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from app.artifacts import Named, Of, shipped
from app.artifacts import names as artifact_names
from app.checkpoints import digests, files
from app.errors import AppError, EvaluationCancelled
from app.forget_sets.bundle import Bundle
from app.plans import DEFAULT_PRECISIONS, check_names, measurable
from app.reports.diagnosis import Diagnosis
from app.reports.policy import Policy
from app.reports.report import ArtifactInfo, AuditInfo, Evidence, Plan, Report, make_report
from app.reports.schemas import METRICS, CheckpointInfo, Role
from app.reports.verdict import Failure
from worker.engine.evaluate import checkpoint_info, evaluate
from worker.engine.precision.overlap import diagnose

log = logging.getLogger(__name__)

Progress = Callable[[Role, str, str, int, int], None]
"""role, precision, stage, done, total"""


class Artifact(NamedTuple):
    """An already quantized checkpoint to be audited as it is."""

    path: Path
    of: Of = "unlearned"
    """The model of the pair that it was made from."""
    name: str | None = None
    """Its precision is `shipped:<name>`; from the folder's name when left out."""


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
    artifacts: Sequence[Artifact] = (),
) -> Report:
    """Audit a pair; the report is the one that the service would write.

    Args:
        original, unlearned, retrained: checkpoint directories; the same architecture, vocabulary and tokenizer.
        precisions: names of `app.precisions` or of `app.plans`; `full` is put in front when it is missing.
        policy: the thresholds; the default policy when left out.
        device: "cpu" or "cuda"; the GPU when there is one.
        calibration_file: the operator's texts, for precisions that end in `@file`.
        artifacts: already quantized checkpoints made from the pair, audited as they are (`app.artifacts`).

    Raises:
        CheckpointRefused, InvalidRequest: before anything is evaluated. An evaluation that fails later is part of the
            report, as evidence that is missing.
    """
    started = datetime.now(UTC)
    plan = check_names(precisions, metrics)
    measured = measurable(plan, bundle.unavailable)
    paths: dict[Role, Path] = {"original": original, "unlearned": unlearned}
    if retrained is not None:
        paths["retrained"] = retrained
    checkpoints = _check(paths)
    named, infos = _check_artifacts(paths, artifacts)
    pairs = shipped(named)
    evidence: list[Evidence] = []

    def measure(role: Role, precision: str, path: Path, held: str, base: Path | None = None) -> Evidence:
        try:
            result = evaluate(
                path,
                held,
                bundle,
                metrics=measured,
                device=device,
                seed=seed,
                progress=_for(progress, role, precision),
                calibration_file=calibration_file,
                base=base,
            )
            return Evidence(role=role, precision=precision, evaluation=result)
        except EvaluationCancelled:
            raise
        except AppError as error:
            failure = Failure(code=error.code, detail=error.detail)
        except Exception as error:
            # Whatever a model brings up inside transformers or a quantizer: the other evaluations still count.
            log.exception("%s at %s", role, precision)
            failure = Failure(code="engine_error", detail=f"{type(error).__name__}: {error}")
        return Evidence(role=role, precision=precision, failure=failure)

    for role, path in paths.items():
        for precision in plan.precisions:
            same = next((e for e in evidence if _same(e, checkpoints, role, precision)), None)
            if same is not None:
                evidence.append(same.model_copy(update={"role": role, "reused": True}))
            else:
                evidence.append(measure(role, precision, path, precision))
    places = {one.name: one.checkpoint.uri for one in infos}
    for pair in pairs:
        for one in (pair.original, pair.unlearned):
            if one is not None:
                evidence.append(measure(one.of, pair.precision, Path(places[one.name]), one.held, paths[one.of]))
    plan = Plan(precisions=[*plan.precisions, *(pair.precision for pair in pairs)], metrics=plan.metrics)
    diagnosis = _diagnose(original, unlearned, _for(progress, "unlearned", "full"))
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
        diagnosis,
        infos,
    )


def _diagnose(original: Path, unlearned: Path, progress: Callable[[str, int, int], None] | None) -> Diagnosis | Failure:
    """Without it no audit is robust, but what else was measured counts, whatever happens."""
    try:
        return diagnose(original, unlearned, progress=progress)
    except EvaluationCancelled:
        raise
    except AppError as error:
        return Failure(code=error.code, detail=error.detail)
    except Exception as error:
        return Failure(code="engine_error", detail=f"{type(error).__name__}: {error}")


def _check(paths: Mapping[Role, Path]) -> dict[Role, CheckpointInfo]:
    found = {role: files.inspect(path) for role, path in paths.items()}
    for role, other in found.items():
        if role != "original":
            files.check_pair(found["original"], other)
    return {role: _info(inspected) for role, inspected in found.items()}


def _check_artifacts(
    paths: Mapping[Role, Path], artifacts: Sequence[Artifact]
) -> tuple[list[Named], list[ArtifactInfo]]:
    names = artifact_names([(one.name, one.path.resolve().name) for one in artifacts])
    found: list[ArtifactInfo] = []
    for one, name in zip(artifacts, names, strict=True):
        inspected = files.inspect(one.path, quantized=True)
        files.check_artifact(files.inspect(paths[one.of]), inspected)
        assert inspected.quantization is not None
        found.append(
            ArtifactInfo(name=name, of=one.of, checkpoint=_info(inspected), quantization=inspected.quantization)
        )
    return [Named(one.name, one.of, one.quantization) for one in found], found


def _info(inspected: files.CheckpointFiles) -> CheckpointInfo:
    return checkpoint_info(inspected, digests.digest(inspected.path, cache=None), None)


def _same(evidence: Evidence, checkpoints: Mapping[Role, CheckpointInfo], role: Role, precision: str) -> bool:
    """Whether this evaluation was done before, under another role: its content address is the same."""
    return evidence.precision == precision and checkpoints[evidence.role].digest == checkpoints[role].digest


def _for(progress: Progress | None, role: Role, precision: str) -> Callable[[str, int, int], None] | None:
    if progress is None:
        return None
    return lambda stage, done, total: progress(role, precision, stage, done, total)
