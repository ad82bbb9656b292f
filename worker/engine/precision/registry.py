"""Precisions by name, applied to a model.

A method joins by one function in `METHODS`: it quantizes the model's linear layers in place and returns each module's
relative error. Everything else (what is to be quantized, the proof) is the same for all.
"""

from collections.abc import Callable
from importlib.metadata import version

from transformers import PreTrainedModel

from app import __version__
from app.errors import EvaluationFailed
from app.precisions import FULL, PRECISIONS, Precision, parse
from app.reports.schemas import Census, PrecisionInfo, Scalar
from worker.engine.precision import bnb, census, rtn
from worker.engine.precision.layers import survey

__all__ = ["METHODS", "PRECISIONS", "apply", "describe", "parse"]

Apply = Callable[[PreTrainedModel, Precision, Callable[[], None]], dict[str, float]]
METHODS: dict[str, Apply] = {"rtn": rtn.apply, "bnb": bnb.apply}


def apply(
    model: PreTrainedModel, precision: Precision, progress: Callable[[int, int], None] = lambda done, total: None
) -> Census | None:
    """Hold the model's linear weights at a precision, in place, and prove it. None for full precision.

    Args:
        model: An unquantized model in eval mode.
        precision: From `parse`.
        progress: Called with (modules done, modules in all); may raise to stop.

    Raises:
        EvaluationFailed: `precision_unavailable` when this model cannot be held so (nothing is changed then),
            `not_quantized` when it was tried and cannot be proven.
    """
    if precision == FULL:
        return None
    before = survey(model)
    if precision.method == "rtn":
        rtn.check(dict(before.shapes), precision)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress(done, len(before.shapes))

    try:
        method = METHODS[precision.method]
    except KeyError:
        raise EvaluationFailed("precision_unavailable", f"This worker cannot apply {precision.name}") from None
    errors = method(model, precision, tick)
    return census.take(model, precision, before, errors)


def describe(precision: Precision) -> PrecisionInfo:
    """What was applied, for the report: library, version and every parameter that could change a number."""
    library, release, parameters = "lethe", __version__, dict[str, Scalar]()
    if precision.method == "rtn":
        levels = 2 ** ((precision.bits or 0) - 1)
        parameters = {"step": f"max|w| / {levels}", "lowest_code": -levels, "highest_code": levels - 1}
    elif precision.method == "bnb":
        library, release = "bitsandbytes", version("bitsandbytes")
        parameters = (
            {"outlier_threshold": bnb.OUTLIER_THRESHOLD, "activations": "int8"}
            if precision.bits == 8
            else {"double_quantization": False, "quant_type": precision.name.removeprefix("bnb-")}
        )
    return PrecisionInfo(
        name=precision.name,
        method=precision.method,
        bits=precision.bits,
        granularity=precision.granularity,
        group_size=precision.group_size,
        library=library,
        version=release,
        parameters=parameters,
    )
