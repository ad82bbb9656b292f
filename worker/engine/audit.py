"""A whole audit without a service: evaluate the pair at every precision, and judge it."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from app.catalog.metrics import DEFAULT_METRICS
from app.catalog.plans import DEFAULT_PRECISIONS, check_names, measurable
from app.checkpoints import pair
from app.checkpoints.format import digests, files
from app.checkpoints.format.digests import Expected, Identity
from app.errors import AppError, EvaluationCancelled
from app.evidence.artifacts import Named, Of, shipped
from app.evidence.artifacts import names as artifact_names
from app.evidence.diagnosis import Diagnosis
from app.evidence.evaluation import CheckpointInfo, Role
from app.evidence.needed import Needed, evaluations, whole
from app.forget_sets.bundle import Bundle
from app.judgement.policy import Policy
from app.judgement.verdict import Failure
from app.reports.model import ArtifactInfo, AuditInfo, AuditReport, Evidence, make_report
from worker.engine.checkpoint import all_differences
from worker.engine.diagnosis.overlap import diagnose
from worker.engine.evaluate import checkpoint_info, evaluate

log = logging.getLogger(__name__)

Progress = Callable[[Role, str, str, int, int], None]
"""role, precision, stage, done, total"""


class Artifact(NamedTuple):
    """An already quantized checkpoint to be audited as it is."""

    path: Path
    of: Of = "unlearned"
    """The model of the pair that it was made from."""
    name: str | None = None
    """Its precision is `shipped:<name>`; the folder's name when left out."""


def audit(
    original: Path,
    unlearned: Path,
    bundle: Bundle,
    *,
    retrained: Path | None = None,
    precisions: Sequence[str] = DEFAULT_PRECISIONS,
    metrics: Sequence[str] = DEFAULT_METRICS,
    policy: Policy | None = None,
    device: str | None = None,
    seed: int = 0,
    name: str | None = None,
    progress: Progress | None = None,
    calibration_file: Path | None = None,
    artifacts: Sequence[Artifact] = (),
) -> AuditReport:
    """Audit a pair; the report is the one that the service would write.

    Args:
        original, unlearned, retrained: checkpoint directories; the same architecture, configs and tokenizer.
        precisions: names that `app.catalog` knows, of precisions or plans; `full` is added in front when it is missing.
        metrics: names of `app.catalog.metrics`.
        policy: the thresholds; the default policy when left out.
        device: "cpu" or "cuda"; the GPU when there is one.
        calibration_file: the operator's texts, for precisions that end in `@file`.
        artifacts: already quantized checkpoints made from the pair, audited as they are (`app.evidence.artifacts`).

    Raises:
        CheckpointRefused, InvalidRequest: before anything is evaluated. An evaluation that fails later is part of the
            report, as evidence that is missing.
    """
    started = datetime.now(UTC)
    plan = check_names(precisions, metrics)
    measured = measurable(plan, bundle.unavailable)
    judged_by = policy or Policy()
    paths: dict[Role, Path] = {"original": original, "unlearned": unlearned}
    if retrained is not None:
        paths["retrained"] = retrained
    opened = _check(paths, judged_by.allowed_differences)
    checkpoints = {role: checkpoint_info(one.files, one.identity) for role, one in opened.items()}
    named, infos = _check_artifacts(opened, artifacts, judged_by.allowed_differences)
    pairs = shipped(named)
    evidence: list[Evidence] = []

    shipped_as = {one.name: one.checkpoint for one in infos}

    def measure(part: Needed) -> Evidence:
        role, precision, base = part.role, part.precision, part.base
        shown = checkpoints[role] if part.artifact is None else shipped_as[part.artifact]
        path = paths[role] if part.artifact is None else Path(shown.uri)
        expected = Expected(
            checkpoint=shown.digest,
            interface=opened["original"].identity.interface,
            base=None if base is None else opened[base].identity.digest,
        )
        try:
            result = evaluate(
                path,
                part.evaluated_at,
                bundle,
                metrics=measured,
                device=device,
                seed=seed,
                progress=_for(progress, role, precision),
                calibration_file=calibration_file,
                interface=original,
                base=None if base is None else paths[base],
                expected=expected,
            )
            return Evidence(role=role, precision=precision, evaluation=result)
        except EvaluationCancelled:
            raise
        except AppError as error:
            failure = Failure(code=error.code, detail=error.detail)
        except Exception as error:
            # Whatever error a model causes in transformers or a quantizer: the other evaluations still count.
            log.exception("%s at %s", role, precision)
            failure = Failure(code="engine_error", detail=f"{type(error).__name__}: {error}")
        return Evidence(role=role, precision=precision, failure=failure)

    for part in evaluations(plan, paths, pairs):
        same = next((e for e in evidence if _same(e, checkpoints, part)), None)
        if same is not None:
            evidence.append(same.model_copy(update={"role": part.role, "reused": True}))
        else:
            evidence.append(measure(part))
    diagnosis = _diagnose(opened, _for(progress, "unlearned", "full"))
    return make_report(
        AuditInfo(
            id=None,
            name=name or f"{original.name} / {unlearned.name}",
            created_at=started,
            finished_at=datetime.now(UTC),
        ),
        checkpoints,
        bundle.info(),
        whole(plan, pairs),
        judged_by,
        evidence,
        diagnosis,
        infos,
    )


def _diagnose(
    opened: Mapping[Role, "_Opened"], progress: Callable[[str, int, int], None] | None
) -> Diagnosis | Failure:
    """The diagnosis, or its failure: without it no audit is robust, but what else was measured still counts."""
    try:
        found = diagnose(opened["original"].files.path, opened["unlearned"].files.path, progress=progress)
        for read, role in ((found.original, opened["original"]), (found.unlearned, opened["unlearned"])):
            digests.check_digest(role.files.path, read.digest, role.identity.digest)
        return found
    except EvaluationCancelled:
        raise
    except AppError as error:
        return Failure(code=error.code, detail=error.detail)
    except Exception as error:
        return Failure(code="engine_error", detail=f"{type(error).__name__}: {error}")


class _Opened(NamedTuple):
    files: files.CheckpointFiles
    identity: Identity


def _check(paths: Mapping[Role, Path], allowed: Collection[str]) -> dict[Role, _Opened]:
    """The roles' files and digests, checked against each other."""
    found = {role: files.inspect(path) for role, path in paths.items()}
    for role, other in found.items():
        if role != "original":
            pair.check_pair(found["original"], other, allowed)
            refused = [one for one in all_differences(found["original"], other) if one.field not in allowed]
            if refused:
                raise pair.mismatch(found["original"], other, [], refused)
    return {role: _Opened(one, digests.identity(one)) for role, one in found.items()}


def _check_artifacts(
    opened: Mapping[Role, _Opened], artifacts: Sequence[Artifact], allowed: Collection[str]
) -> tuple[list[Named], list[ArtifactInfo]]:
    names = artifact_names([(one.name, one.path.resolve().name) for one in artifacts])
    found: list[ArtifactInfo] = []
    for one, name in zip(artifacts, names, strict=True):
        inspected = files.inspect(one.path, quantized=True)
        pair.check_artifact(opened[one.of].files, inspected, allowed)
        assert inspected.quantization is not None
        info = checkpoint_info(inspected, digests.identity(inspected))
        found.append(ArtifactInfo(name=name, of=one.of, checkpoint=info, quantization=inspected.quantization))
    return [Named(one.name, one.of, one.quantization) for one in found], found


def _same(evidence: Evidence, checkpoints: Mapping[Role, CheckpointInfo], part: Needed) -> bool:
    """Whether this evaluation was already done under another role, because its content address is the same."""
    if part.artifact is not None or evidence.precision != part.precision:
        return False
    return checkpoints[evidence.role].digest == checkpoints[part.role].digest


def _for(progress: Progress | None, role: Role, precision: str) -> Callable[[str, int, int], None] | None:
    if progress is None:
        return None
    return lambda stage, done, total: progress(role, precision, stage, done, total)
