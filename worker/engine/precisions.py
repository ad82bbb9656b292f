"""Precisions by name, applied to a model.

To add a quantizer, add a file in `quantizers` and an entry in `app.catalog.quantizers`. Its `apply` quantizes the
model's linear layers in place, `parameters` says what else could change a number, `live` and `evidence` say what its
layers hold and claim to be. Which layers had to be quantized, what they held before, and whether the claims are true is
measured here.
"""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import cast

from transformers import PreTrainedModel

from app import __version__
from app.catalog.frozen import Scalar
from app.catalog.precisions import FULL, PRECISIONS, parse
from app.catalog.quantizers import QUANTIZERS, Precision
from app.errors import EvaluationFailed
from app.evidence.evaluation import Census, PrecisionInfo
from worker.engine.layers.linear import Survey, check_groups, survey
from worker.engine.proof import census, claims
from worker.engine.proof.snapshot import Snapshot, take_snapshot
from worker.engine.quantizers.availability import library_version, unavailable
from worker.engine.quantizers.calibration import Calibration
from worker.engine.quantizers.ticks import Ticks

__all__ = ["PRECISIONS", "apply", "describe", "parse"]

Apply = Callable[[PreTrainedModel, Precision, Ticks, Calibration | None], None]


def quantizer(precision: Precision) -> ModuleType:
    """The module that applies it, imported only now: some take seconds, and most evaluations do not need them."""
    return importlib.import_module(f"worker.engine.quantizers.{QUANTIZERS[precision.method].module}")


def apply(
    model: PreTrainedModel,
    precision: Precision,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    calibration: Calibration | None = None,
) -> Census | None:
    """Quantize the model's linear weights to a precision, in place, and prove it. None for full precision.

    Args:
        model: An unquantized model in eval mode.
        precision: From `parse`.
        progress: Called with (modules done, modules in all); may raise to stop.
        calibration: From `calibration.draw`, for the precisions that read texts.

    Raises:
        EvaluationFailed: `precision_unavailable` when it cannot be applied to this model (which may then be partly
            changed: open it again), `not_quantized` when it was applied and cannot be proven.
    """
    if precision == FULL:
        return None
    reason = unavailable(precision)
    if reason is not None:
        raise EvaluationFailed("precision_unavailable", f"{precision.name}: {reason}")
    if precision.calibration is not None and calibration is None:
        raise ValueError(f"{precision.name} needs calibration texts")
    before = survey(model)
    check_groups(before, precision)
    snapshot = take_snapshot(model)
    ticks = Ticks(progress, len(before.shapes))
    try:
        quantize: Apply = quantizer(precision).apply
        quantize(model, precision, ticks, calibration)
    except ImportError as error:
        raise EvaluationFailed(
            "precision_unavailable", f"{precision.name}: {precision.requires} cannot be imported here: {error}"
        ) from error
    return prove(model, precision, before, snapshot)


def prove(model: PreTrainedModel, precision: Precision, before: Survey, snapshot: Snapshot) -> Census:
    """The proof that a live model holds a precision: `census.take` with the claims of the quantizer's module."""
    return census.take(model, precision, before, snapshot, cast(claims.Quantizer, quantizer(precision)))


def describe(precision: Precision, calibration: Calibration | None = None) -> PrecisionInfo:
    """What was applied, for the report: library, version and every parameter that could change a number."""
    return PrecisionInfo(
        name=precision.name,
        method=precision.method,
        bits=precision.bits,
        granularity=precision.granularity,
        group_size=precision.group_size,
        library=precision.requires or "lethe",
        version=(library_version(precision) or "not installed") if precision.requires else __version__,
        parameters=_parameters(precision) | ({} if calibration is None else calibration.parameters()),
    )


def _parameters(precision: Precision) -> dict[str, Scalar]:
    if precision == FULL:
        return {}
    found: dict[str, Scalar] = quantizer(precision).parameters(precision)
    return found
