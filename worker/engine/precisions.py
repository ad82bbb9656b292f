"""Precisions by name, applied to a model.

A method joins by one function in `METHODS`: it quantizes the model's linear layers in place. Everything else (what is
to be quantized, what it held before, the proof) is the same for all, and asks the method nothing.
"""

from collections.abc import Callable

from transformers import PreTrainedModel

from app import __version__
from app.catalog.frozen import Scalar
from app.catalog.precisions import FULL, PRECISIONS, Method, Precision, parse
from app.errors import EvaluationFailed
from app.evidence.evaluation import Census, PrecisionInfo
from worker.engine.proof import census
from worker.engine.proof.snapshot import keep
from worker.engine.quantizers import bnb, rtn
from worker.engine.quantizers.availability import library_version, unavailable
from worker.engine.quantizers.calibration import AWQ_GRID, GPTQ_DAMPENING, Calibration
from worker.engine.quantizers.layers import check_groups, survey
from worker.engine.quantizers.ticks import Ticks

__all__ = ["METHODS", "PRECISIONS", "apply", "describe", "parse"]

_RESCALED = "the unquantized weights, the factors of rows and columns undone"
Apply = Callable[[PreTrainedModel, Precision, Ticks, Calibration | None], None]


def _compressed(model: PreTrainedModel, precision: Precision, ticks: Ticks, calibration: Calibration | None) -> None:
    # Here, not at the top: llm-compressor takes seconds to import, and most evaluations do without.
    from worker.engine.quantizers import compressed

    compressed.apply(model, precision, ticks, calibration)


def _gguf(model: PreTrainedModel, precision: Precision, ticks: Ticks, calibration: Calibration | None) -> None:
    from worker.engine.quantizers import gguf

    gguf.apply(model, precision, ticks)


def _torchao(model: PreTrainedModel, precision: Precision, ticks: Ticks, calibration: Calibration | None) -> None:
    from worker.engine.quantizers import torchao

    torchao.apply(model, precision, ticks)


METHODS: dict[Method, Apply] = {
    "rtn": lambda model, precision, ticks, _: rtn.apply(model, precision, ticks),
    "bnb": lambda model, precision, ticks, _: bnb.apply(model, precision, ticks),
    "gguf": _gguf,
    "torchao": _torchao,
    "gptq": _compressed,
    "awq": _compressed,
    "mxfp4": _compressed,
    "nvfp4": _compressed,
}


def apply(
    model: PreTrainedModel,
    precision: Precision,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    calibration: Calibration | None = None,
) -> Census | None:
    """Hold the model's linear weights at a precision, in place, and prove it. None for full precision.

    Args:
        model: An unquantized model in eval mode.
        precision: From `parse`.
        progress: Called with (modules done, modules in all); may raise to stop.
        calibration: From `calibration.draw`, for the precisions that look at texts.

    Raises:
        EvaluationFailed: `precision_unavailable` when this model cannot be held so (it may be half changed then: open
            it anew), `not_quantized` when it was tried and cannot be proven.
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
    kept = keep(model)
    method, ticks = METHODS[precision.method], Ticks(progress, len(before.shapes))
    try:
        method(model, precision, ticks, calibration)
    except ImportError as error:
        raise EvaluationFailed(
            "precision_unavailable", f"{precision.name}: {precision.requires} cannot be imported here: {error}"
        ) from error
    return census.take(model, precision, before, kept)


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
    levels = 2 ** ((precision.bits or 1) - 1)
    if precision.method == "rtn":
        return {"step": f"max|w| / {levels}", "lowest_code": -levels, "highest_code": levels - 1}
    if precision.method == "bnb" and precision.bits == 8:
        return {"outlier_threshold": bnb.OUTLIER_THRESHOLD, "activations": "int8"}
    if precision.method == "bnb":
        double = precision.double_quantization
        found: dict[str, Scalar] = {"double_quantization": double, "quant_type": bnb.quant_type(precision)}
        return found | {"scales_per_block": bnb.DOUBLE_BLOCK} if double else found
    if precision.method == "gptq":
        return {"symmetric": True, "dampening": GPTQ_DAMPENING, "block": 128, "activation_order": "static"}
    if precision.method == "awq":
        return {"symmetric": False, "grid_points": AWQ_GRID, "relative_error_against": _RESCALED}
    if precision.method in ("mxfp4", "nvfp4"):
        return {"activations": "not quantized", "scale": "e8m0" if precision.method == "mxfp4" else "e4m3"}
    if precision.method == "gguf":
        return {"type": precision.name.removeprefix("gguf-").upper(), "scale": "float16"}
    if precision.method == "torchao":
        config = "Int8WeightOnlyConfig" if precision.bits == 8 else "IntxWeightOnlyConfig"
        return {"config": config, "symmetric": True, "activations": "not quantized"}
    return {}
