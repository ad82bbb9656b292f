"""GPTQ, AWQ, MXFP4 and NVFP4 by llm-compressor, on the model in memory; weights only.

llm-compressor leaves layers that quantize in `forward`, while their `weight` is still the original one or, for AWQ, a
rescaled one (engine/README.md, "Layers that only pretend" and "Rescaled weights"). So each layer is replaced by a plain
one that holds what it computed with and the grid that it claims: the census then proves the weights that are used.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any

# It logs to standard output, where `lethe run` writes its report, even while it is being imported.
# (Its own LLM_COMPRESSOR_LOG_DISABLED would break GPTQ, because a level that it logs at is then undefined.)
os.environ["LLM_COMPRESSOR_LOG_LEVEL"] = os.environ.get("LLM_COMPRESSOR_LOG_LEVEL", "CRITICAL")

import torch
import transformers
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from llmcompressor import oneshot
from llmcompressor.core import reset_session
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQ_DYNAMIC_MAPPING_REGISTRY, AWQ_MAPPING_REGISTRY, AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from loguru import logger
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from app.catalog.frozen import Scalar
from app.catalog.quantizers import Precision
from app.errors import EvaluationFailed
from worker.engine.layers.grids import FP4_POINTS, Grid, integers, on_grid
from worker.engine.layers.linear import matrix, targets
from worker.engine.proof import claims, compensated, nearest
from worker.engine.proof.evidence import Evidence, maxima
from worker.engine.proof.nearest import Points
from worker.engine.quantizers.calibration import AWQ_GRID, GPTQ_DAMPENING, Calibration
from worker.engine.quantizers.quiet import no_progress_bars
from worker.engine.quantizers.ticks import Ticks

for _library in ("llmcompressor", "compressed_tensors"):
    logger.disable(_library)

PRESETS = {"mxfp4": "MXFP4A16", "nvfp4": "NVFP4A16"}


def apply(model: PreTrainedModel, precision: Precision, ticks: Ticks, calibration: Calibration | None) -> None:
    """Quantize the model's linear layers.

    Raises:
        EvaluationFailed: `precision_unavailable` when the library cannot quantize this model, or did something else.
    """
    if precision.method == "awq":
        _check_awq(model, precision)
    names = _only_linear(model)
    compress(model, precision, names, ticks, calibration)
    for name in names:
        module: Any = model.get_submodule(name)
        model.set_submodule(name, on_grid(quantized_weight(module), module.bias, _grid(module)))
        ticks()


def compress(
    model: PreTrainedModel, precision: Precision, names: list[str], ticks: Ticks, calibration: Calibration | None
) -> None:
    """Let llm-compressor quantize these layers in place, as it leaves them."""
    recipe, fallbacks = _recipe(model, precision, names, ticks)
    data: Any = None if calibration is None else DataLoader(_samples(calibration), batch_size=None)
    # Without texts any object works as the processor; for None it would look on the hub
    # (engine/README.md, "Looking for a processor").
    tokenizer = object() if calibration is None else calibration.tokenizer
    transformers.set_seed(0 if calibration is None else calibration.seed)
    try:
        with _as_found(model), no_progress_bars(), _no_pinning():
            oneshot(model=model, processor=tokenizer, recipe=recipe, dataset=data, shuffle_calibration_samples=False)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # AWQ raises plain Exception when it finds no finite loss; other types come from the progress callback, to stop.
        known = isinstance(error, ValueError | RuntimeError | TypeError | AttributeError | NotImplementedError)
        if not (known or type(error) is Exception) or "can't allocate memory" in str(error):
            raise
        raise EvaluationFailed(
            "precision_unavailable",
            f"{precision.name}: llm-compressor cannot quantize this {type(model).__name__}"
            f" ({type(error).__name__}: {str(error)[:200]}); use an rtn or bnb precision",
        ) from error
    finally:
        reset_session()  # it keeps a reference to the model
    if fallbacks.not_done:
        raise EvaluationFailed(
            "precision_unavailable",
            f"{precision.name}: {len(fallbacks.not_done)} layers ({fallbacks.not_done[0]}, ...) were only rounded to"
            " nearest, because what they compute on the calibration texts is not finite or degenerate;"
            " use more or other calibration texts, or an rtn precision",
        )


def quantized_weight(module: Any) -> Tensor:
    """The weight [out, in] that one of llm-compressor's layers computes with."""
    weight: Tensor = fake_quantize(
        module.weight,
        module.weight_scale,
        getattr(module, "weight_zero_point", None),
        module.quantization_scheme.weights,
        global_scale=getattr(module, "weight_global_scale", None),
    )
    return weight.detach()


def _grid(module: Any) -> Grid:
    arguments = module.quantization_scheme.weights
    scale: Tensor = module.weight_scale.detach()
    whole = getattr(module, "weight_global_scale", None)
    if whole is not None:
        scale = scale / whole.detach()  # in the library's own dtype: it divides before it multiplies
    zero = None if arguments.symmetric else module.weight_zero_point.detach().float()
    points = torch.tensor(FP4_POINTS) if arguments.type == "float" else integers(arguments.num_bits)
    return Grid(scale.float(), zero, points)


class _Fallbacks:
    """The layers that the method gave up on and rounded to nearest instead."""

    def __init__(self) -> None:
        self.not_done: list[str] = []


class _Gptq(GPTQModifier):  # type: ignore[misc]
    _fallbacks: Any = None
    _ticks: Any = None

    def calibrate_module(self, *args: Any, **kwargs: Any) -> None:
        self._ticks.alive()
        super().calibrate_module(*args, **kwargs)

    def on_finalize(self, state: Any, **kwargs: Any) -> bool:
        # Without an inverse of the Hessian it rounds to nearest, logs a line and continues.
        self._fallbacks.not_done += self._rtn_fallback_module_names
        return bool(super().on_finalize(state, **kwargs))


class _Awq(AWQModifier):  # type: ignore[misc]
    _fallbacks: Any = None
    _ticks: Any = None

    def _run_samples(self, module: Any) -> Any:
        self._ticks.alive()
        return super()._run_samples(module)

    def on_finalize(self, state: Any, **kwargs: Any) -> bool:
        # Layers whose outputs are not finite are skipped with a warning; those that it did have an error metric.
        done = {metric.get("layer_name") for metric in self._error_metrics}
        self._fallbacks.not_done += [m.smooth_name for m in self._resolved_mappings if m.smooth_name not in done]
        if not self._resolved_mappings:
            self._fallbacks.not_done.append("all of them")
        return bool(super().on_finalize(state, **kwargs))


def _recipe(
    model: PreTrainedModel, precision: Precision, names: list[str], ticks: Ticks
) -> tuple[list[Any], _Fallbacks]:
    fallbacks = _Fallbacks()
    if precision.method in PRESETS:
        return [QuantizationModifier(targets=names, scheme=PRESETS[precision.method])], fallbacks
    weights = QuantizationArgs(
        num_bits=precision.bits,
        type="int",
        symmetric=precision.method == "gptq",
        strategy=precision.granularity,
        group_size=precision.group_size,
    )
    groups = {"group_0": QuantizationScheme(targets=names, weights=weights)}
    if precision.method == "gptq":
        gptq = _Gptq(config_groups=groups, dampening_frac=GPTQ_DAMPENING)
        gptq._fallbacks, gptq._ticks = fallbacks, ticks
        return [gptq], fallbacks
    awq = _Awq(n_grid=AWQ_GRID, offload_device=None)
    awq._fallbacks, awq._ticks = fallbacks, ticks
    return [awq, QuantizationModifier(config_groups=groups)], fallbacks


def _check_awq(model: PreTrainedModel, precision: Precision) -> None:
    """Refuse architectures for which the library only guesses what to rescale.

    Where its guess matches nothing (GPT-2), it silently rounds to nearest.
    """
    kind = type(model).__name__
    if kind not in AWQ_MAPPING_REGISTRY and kind not in AWQ_DYNAMIC_MAPPING_REGISTRY:
        instead = precision.name.partition("@")[0].replace("awq", "gptq")
        raise EvaluationFailed(
            "precision_unavailable",
            f"{precision.name}: llm-compressor has no rule for which layers of a {kind} AWQ rescales; use {instead}",
        )


def _only_linear(model: PreTrainedModel) -> list[str]:
    """The names of the layers; GPT-2's Conv1D, which llm-compressor skips, is replaced by an equal linear layer."""
    found = targets(model)
    for name, module in found.items():
        if isinstance(module, Conv1D):
            weight = matrix(module).detach().contiguous()
            linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta", dtype=weight.dtype)
            linear.weight, linear.bias = nn.Parameter(weight, requires_grad=False), module.bias
            model.set_submodule(name, linear.eval())
    return list(found)


def _samples(calibration: Calibration) -> Any:
    ids = calibration.ids[:, None, :]
    return [{"input_ids": sample, "attention_mask": torch.ones_like(sample)} for sample in ids]


@contextlib.contextmanager
def _as_found(model: PreTrainedModel) -> Iterator[None]:
    """Give oneshot a folder with the model's config, which it reads by path, and undo its changes to the model."""
    before = model.config.name_or_path
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        model.config.name_or_path = folder
        try:
            yield
        finally:
            model.config.name_or_path = before
            vars(model).pop("save_pretrained", None)


@contextlib.contextmanager
def _no_pinning() -> Iterator[None]:
    """Don't pin memory without an accelerator: AWQ does and fails (engine/README.md, "Pinned memory")."""
    if torch.accelerator.is_available():
        yield
        return
    original = IntermediatesCache.pin_memory
    IntermediatesCache.pin_memory = lambda self, *args, **kwargs: None
    try:
        yield
    finally:
        IntermediatesCache.pin_memory = original


_RESCALED = "the unquantized weights, the factors of rows and columns undone"


def parameters(precision: Precision) -> dict[str, Scalar]:
    """What else could change a number."""
    if precision.method == "gptq":
        return {"symmetric": True, "dampening": GPTQ_DAMPENING, "block": 128, "activation_order": "static"}
    if precision.method == "awq":
        return {"symmetric": False, "grid_points": AWQ_GRID, "relative_error_against": _RESCALED}
    return {"activations": "not quantized", "scale": "e8m0" if precision.method == "mxfp4" else "e4m3"}


live = claims.on_grid


def evidence(layer: claims.Layer) -> Evidence:
    """GPTQ's and AWQ's errors are bounded row by row, those of the floating-point formats weight by weight."""
    bits, original = layer.precision.bits or 0, layer.original
    method = layer.precision.method
    if method in PRESETS:
        largest, slack = maxima(original, layer.size), layer.slack
        grid = Points(layer.module.grid.scale, torch.tensor(FP4_POINTS), layer.size, slack)
        if method == "mxfp4":
            return claims.rounded(layer, grid, largest / 7 * (1 - slack), largest / 3.5 * (1 + slack))
        low, high = nearest.nvfp4(largest, layer.peak)
        return claims.rounded(layer, grid, low - slack * largest, high + slack * largest)
    limits = compensated.ROUNDED if method == "awq" else None
    steps = compensated.integers(bits)
    found = compensated.measure(layer.live, original, layer.size, steps, bits, layer.factors, limits)
    if method == "awq":
        return found
    bounds = nearest.around(maxima(original, layer.size) / (2 ** (bits - 1) - 0.5), layer.slack)
    return found._replace(reason=found.reason or nearest.scale_reason(layer.module.grid.scale, *bounds))
