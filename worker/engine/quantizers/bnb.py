"""bitsandbytes: NF4 and FP4 (blocks of 64 weights share a scale) and LLM.int8() (arXiv 2208.07339), on CPU and CUDA.

With double quantization (QLoRA, arXiv 2305.14314, section 3) the scales, minus their mean, are held in 8 bits, in
blocks of 256. The codes are still those of the exact scales.

The live modules are evaluated. For LLM.int8() that matters: it quantizes activations too, so no dequantized copy of the
weights gives the same numbers (engine/README.md, "Quantized activations"). It also picks outlier columns per batch, so
its numbers, unlike those of other precisions, depend a little on how texts are batched.
"""

import importlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from app.catalog.frozen import Scalar
from app.catalog.quantizers import BNB_BLOCK, Precision
from app.errors import EvaluationFailed
from worker.engine.layers.grids import integers
from worker.engine.layers.linear import Linear, matrix, targets
from worker.engine.proof import claims, nearest
from worker.engine.proof.evidence import Evidence, maxima
from worker.engine.proof.nearest import HALF_EPS, HALF_LEAST, Points
from worker.engine.quantizers.codes import CODEBOOKS

# Set before the import: it warns of a kernel on the hub that Lethe doesn't use, and of float16 casts at every layer.
for _name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
    logging.getLogger(_name).setLevel(logging.ERROR)

bnb: Any = importlib.import_module("bitsandbytes")

OUTLIER_THRESHOLD = 6.0
"""LLM.int8(): activation columns with a value above this stay in 16 bits (the paper's and transformers' default)."""


DOUBLE_BLOCK = 256
"""Scales that share a scale of their own in double quantization."""


@torch.no_grad()
def apply(model: PreTrainedModel, precision: Precision, tick: Callable[[], None], calibration: object = None) -> None:
    """Replace the model's linear layers by quantized ones."""
    for name, module in targets(model).items():
        if type(module) not in (nn.Linear, Conv1D):
            raise EvaluationFailed(
                "precision_unavailable", f"{name} is a {type(module).__name__}, which bitsandbytes would not replace"
            )
        replacement = _int8(module) if precision.bits == 8 else _four_bit(module, precision)
        if precision.bits == 4 and not _read_back(replacement):
            raise EvaluationFailed(
                "precision_unavailable",
                f"{precision.name}: bitsandbytes misreads {name} on the {module.weight.device.type}"
                f" (its {matrix(module).shape[1]} columns are not a multiple of {BNB_BLOCK}); use an rtn precision",
            )
        model.set_submodule(name, replacement.eval().requires_grad_(False))
        tick()


def dequantized(module: nn.Module) -> Tensor:
    """The weight that a quantized layer holds, [out, in].

    Raises:
        EvaluationFailed: `not_quantized` when it holds no quantized weight.
    """
    if isinstance(module, bnb.nn.Linear4bit) and module.weight.quant_state is not None:
        weight: Tensor = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        return weight
    if isinstance(module, bnb.nn.Linear8bitLt):
        codes, scales = int8_state(module)
        return codes.float() * (scales.float()[:, None] / 127)
    raise EvaluationFailed("not_quantized", f"{type(module).__name__} holds no bitsandbytes weight")


def int8_state(module: nn.Module) -> tuple[Tensor, Tensor]:
    """LLM.int8()'s codes [out, in] and the largest |w| of each row [out]; the first forward moves them elsewhere."""
    assert isinstance(module, bnb.nn.Linear8bitLt)
    holder = module.weight if module.weight.CB is not None else module.state
    if holder.CB is None or holder.SCB is None:
        raise EvaluationFailed("not_quantized", "a Linear8bitLt layer was never quantized")
    return holder.CB, holder.SCB


def unproven(module: nn.Module, shape: tuple[int, int], precision: Precision) -> str | None:
    """Why this live module is not proven to hold packed weights of that precision; None when it is."""
    weight = getattr(module, "weight", None)
    if precision.bits == 8:
        if not isinstance(module, bnb.nn.Linear8bitLt) or weight is None:
            return f"is a {type(module).__name__}, not Linear8bitLt"
        if weight.dtype != torch.int8 or tuple(int8_state(module)[0].shape) != shape:
            return f"holds {weight.dtype} weights"
        return None
    if not isinstance(module, bnb.nn.Linear4bit) or weight is None:
        return f"is a {type(module).__name__}, not Linear4bit"
    state = weight.quant_state
    if state is None or weight.dtype != torch.uint8 or weight.numel() != (shape[0] * shape[1] + 1) // 2:
        return f"holds {weight.dtype} weights that are not packed"
    if state.quant_type != quant_type(precision) or state.blocksize != BNB_BLOCK or tuple(state.shape) != shape:
        return f"is packed as {state.quant_type} in blocks of {state.blocksize}"
    if state.nested != precision.double_quantization or (state.absmax.dtype == torch.uint8) != state.nested:
        return f"holds {str(state.absmax.dtype).removeprefix('torch.')} scales"
    if state.nested and state.state2.blocksize != DOUBLE_BLOCK:
        return f"holds scales in blocks of {state.state2.blocksize}"
    if getattr(state, "packing_format_for_cpu", False):
        return "was repacked for AVX512-BF16"
    return None


def quant_type(precision: Precision) -> str:
    """bitsandbytes' name of a 4-bit type: nf4 or fp4."""
    return precision.name.removeprefix("bnb-").removesuffix("-dq")


def scales(state: Any) -> Tensor:
    """The scale of each block of a 4-bit weight, as it is held: [blocks], float32."""
    if not state.nested:
        return state.absmax  # type: ignore[no-any-return]
    inner = state.state2
    blocks = inner.absmax.repeat_interleave(inner.blocksize)[: state.absmax.numel()]
    return inner.code[state.absmax.long()] * blocks + state.offset  # type: ignore[no-any-return]


def _read_back(layer: Any) -> bool:
    """Whether the kernel that reads a 4-bit weight reads what was packed: code * absmax, two codes per byte.

    On the CPU, bitsandbytes 0.50.2 silently misreads it when blocks cross rows (96 columns: relative error 0.47 instead
    of 0.09). `layer` itself computes with what is read.
    """
    state, packed = layer.weight.quant_state, layer.weight.data.reshape(-1)
    codes = torch.stack((packed >> 4, packed & 15), dim=1).reshape(-1)[: state.shape[0] * state.shape[1]]
    scale = scales(state).repeat_interleave(state.blocksize)[: codes.numel()]
    expected = (state.code[codes.long()] * scale).reshape(tuple(state.shape)).to(state.dtype)
    return torch.allclose(dequantized(layer), expected, rtol=0.02, equal_nan=True)


def _four_bit(module: Linear, precision: Precision) -> Any:
    weight = matrix(module).detach().contiguous()
    rows, columns = weight.shape
    layer: Any = bnb.nn.Linear4bit(
        columns,
        rows,
        bias=module.bias is not None,
        compute_dtype=weight.dtype,
        compress_statistics=precision.double_quantization,
        quant_type=quant_type(precision),
        device="meta",
    )
    layer.weight = bnb.nn.Params4bit(
        weight,
        requires_grad=False,
        blocksize=BNB_BLOCK,
        compress_statistics=precision.double_quantization,
        quant_type=quant_type(precision),
        module=layer,
    )
    layer.bias = module.bias
    # On CPUs with AVX512-BF16 the first forward in eval mode would repack the weights in place and compute in bf16;
    # what dequantize() then reads is garbage, without an error (engine/README.md, "Repacked weights").
    layer.support_avx512bf16_for_cpu = False
    layer.weight = layer.weight.to(weight.device)
    if not layer.weight.bnb_quantized:
        layer.weight = layer.weight._quantize(weight.device)
    return layer


def _int8(module: Linear) -> Any:
    weight = matrix(module).detach().contiguous()
    rows, columns = weight.shape
    layer: Any = bnb.nn.Linear8bitLt(
        columns,
        rows,
        bias=module.bias is not None,
        has_fp16_weights=False,
        threshold=OUTLIER_THRESHOLD,
        device="meta",
    )
    # Int8Params quantizes when it is moved from the CPU to any device.
    layer.weight = bnb.nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False).to(weight.device)
    layer.bias = module.bias
    return layer


def parameters(precision: Precision) -> dict[str, Scalar]:
    """What else could change a number."""
    if precision.bits == 8:
        return {"outlier_threshold": OUTLIER_THRESHOLD, "activations": "int8"}
    double = precision.double_quantization
    found: dict[str, Scalar] = {"double_quantization": double, "quant_type": quant_type(precision)}
    return found | {"scales_per_block": DOUBLE_BLOCK} if double else found


def live(module: Linear, shape: tuple[int, int], precision: Precision) -> claims.Live | str:
    """The weight that a packed layer computes with, once its packed type and quantizer state are proven."""
    return unproven(module, shape, precision) or (None, dequantized(module))


def evidence(layer: claims.Layer) -> Evidence:
    """Against the grid of the layer's own quantizer state."""
    if layer.precision.bits == 8:
        grid, bounds = eight_bit(int8_state(layer.module)[1], layer.original, max(layer.slack, 2 * HALF_EPS))
        return claims.rounded(layer, grid, *bounds)
    grid, bounds = four_bit(layer.module.weight.quant_state, layer.original)
    return claims.rounded(layer, grid._replace(slack=layer.slack), *bounds)


def four_bit(state: Any, original: Tensor, slack: float = claims.TOLERANCE) -> tuple[Points, tuple[Tensor, Tensor]]:
    """The grid of a 4-bit weight, and bounds of its scales; `slack` for weights that were held in 16 bits before."""
    largest = maxima(original, state.blocksize)
    low, high = nearest.around(largest, slack)
    if state.nested:
        less, more = nearest.double_quantized(largest, state.state2.blocksize)
        low, high = less - slack * largest, more + slack * largest
    scale = scales(state).float().reshape(largest.shape).to(largest.device)
    points = CODEBOOKS[f"bnb-{state.quant_type}"].values
    return Points(scale, points, state.blocksize, slack, late=(scale - largest).abs()), (low, high)


def eight_bit(held: Tensor, original: Tensor, slack: float) -> tuple[Points, tuple[Tensor, Tensor]]:
    """The grid of LLM.int8(), which holds weights in float16 before it rounds them, and bounds of its scales."""
    bounds = nearest.around(maxima(original, original.shape[1]) / 127, slack, HALF_LEAST)
    return Points(held.float()[:, None] / 127, integers(8), original.shape[1], slack, HALF_LEAST), bounds
