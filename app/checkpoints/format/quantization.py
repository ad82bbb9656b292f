"""What an already quantized checkpoint says about itself: its config's `quantization_config`, and its headers."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.catalog.frozen import Scalar
from app.checkpoints.format.headers import BYTES, Tensor
from app.errors import CheckpointRefused
from app.evidence.quantization import QUANT_METHODS, Quantization

_PACKED = (".qweight", ".weight_packed")
_STATE = (
    ".qzeros", ".scales", ".g_idx", ".SCB", ".weight_format", ".weight_scale", ".weight_zero_point", ".weight_shape",
    ".weight_global_scale", ".weight_g_idx", ".input_scale", ".input_zero_point", ".input_global_scale",
)  # fmt: skip
"""Suffixes of the tensors that belong to a quantizer, not to the model."""
_CODES = ("U8", "I8", "F8_E4M3", "F8_E5M2", "I32")
_SLACK = 32
"""Rows or columns are padded to whole words by some formats."""
_BNB_BLOCK = 64


def read(config: Mapping[str, Any], path: Path) -> Quantization:
    """What a `quantization_config` says.

    Raises:
        CheckpointRefused: `checkpoint_unsupported` for a method that Lethe does not open, or an invalid config.
    """
    method = str(config.get("quant_method") or ("bitsandbytes" if config.get("load_in_4bit") else "unknown"))
    readers = {"bitsandbytes": _bitsandbytes, "compressed-tensors": _compressed, "gptq": _gptq, "awq": _awq}
    if method not in readers:
        raise CheckpointRefused(
            "checkpoint_unsupported",
            f"{path} is quantized by {method!r}; Lethe opens {', '.join(QUANT_METHODS)}. Convert it to one of those,"
            " or name the unquantized checkpoint and a precision",
        )
    try:
        return readers[method](config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointRefused(
            "checkpoint_unsupported",
            f"{path}/config.json: its quantization_config of {method} is incomplete or invalid ({type(error).__name__}:"
            f" {error}); save the quantized model again",
        ) from error


def unpacked(
    tensors: Mapping[str, Tensor], bits: int | None, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """The tensors that a quantized checkpoint unpacks to: with unquantized names, without the quantizer's own.

    A packed weight gets the shape that `shapes` has for it if its size fits that, else its size as a one-number shape.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".weight." in name or name.endswith(_STATE):
            continue
        base, _, last = name.rpartition(".")
        packed = f".{last}" in _PACKED
        plain = f"{base}.weight" if packed else name
        if packed or (last == "weight" and tensor.dtype in _CODES):
            per_item = 8 * BYTES[tensor.dtype]
            size = math.prod(tensor.shape) * per_item // (bits or per_item)
            shape = shapes.get(plain, (size,))
            exact = math.prod(shape)
            fits = bits is None or exact <= size <= exact + _SLACK * max(shape, default=0)
            found[plain] = tensor._replace(shape=shape if fits else (size,))
        else:
            found[plain] = tensor
    return found


def _bitsandbytes(config: Mapping[str, Any]) -> Quantization:
    if config.get("load_in_8bit"):
        outliers: dict[str, Scalar] = {
            "outlier_threshold": float(config.get("llm_int8_threshold", 6.0)), "activations": "int8",
        }  # fmt: skip
        return Quantization(method="bitsandbytes", bits=8, granularity="channel", group_size=None, parameters=outliers)
    if not config.get("load_in_4bit"):
        raise ValueError("neither load_in_4bit nor load_in_8bit")
    return Quantization(
        method="bitsandbytes",
        bits=4,
        granularity="group",
        group_size=_BNB_BLOCK,
        parameters={
            "quant_type": str(config.get("bnb_4bit_quant_type", "fp4")),
            "double_quantization": bool(config.get("bnb_4bit_use_double_quant", False)),
            "compute_dtype": str(config.get("bnb_4bit_compute_dtype") or "float32"),
        },
    )


def _gptq(config: Mapping[str, Any]) -> Quantization:
    meta = config.get("meta") if isinstance(config.get("meta"), dict) else {}
    return _grouped(
        "gptq",
        int(config["bits"]),
        config.get("group_size"),
        {
            "symmetric": bool(config.get("sym", True)),
            "activation_order": bool(config.get("desc_act", False)),
            "format": str(config.get("format") or config.get("checkpoint_format") or "gptq"),
            "made_by": _made_by(meta or {}),
        },
    )


def _awq(config: Mapping[str, Any]) -> Quantization:
    meta = config.get("meta") if isinstance(config.get("meta"), dict) else {}
    zero_point = config.get("zero_point", not config.get("sym", False))
    return _grouped(
        "awq",
        int(config.get("bits", config.get("w_bit", 4))),
        config.get("group_size", config.get("q_group_size")),
        {
            "symmetric": not zero_point,
            "format": str(config.get("format") or config.get("checkpoint_format") or config.get("version") or "gemm"),
            "made_by": _made_by(meta or {}),
        },
    )


def _compressed(config: Mapping[str, Any]) -> Quantization:
    weights = [group["weights"] for group in config["config_groups"].values() if group.get("weights")]
    inputs = [
        group["input_activations"] for group in config["config_groups"].values() if group.get("input_activations")
    ]
    kinds = {(w["num_bits"], w["type"], w["strategy"], w.get("group_size"), w.get("symmetric")) for w in weights}
    parameters: dict[str, Scalar] = {
        "format": str(config.get("format")),
        "activations": f"{inputs[0]['type']}{inputs[0]['num_bits']}" if inputs else "not quantized",
        "made_by": f"compressed-tensors:{config.get('version', '?')}",
    }
    if len(kinds) != 1:
        return Quantization(
            method="compressed-tensors", bits=None, granularity=None, group_size=None, parameters=parameters
        )
    bits, kind, strategy, size, symmetric = kinds.pop()
    granularity = {"tensor_group": "group"}.get(strategy, strategy)
    return Quantization(
        method="compressed-tensors",
        bits=int(bits),
        granularity=str(granularity),
        group_size=size if granularity == "group" else None,
        parameters=parameters | {"type": str(kind), "symmetric": bool(symmetric)},
    )


def _grouped(method: str, bits: int, size: Any, parameters: dict[str, Scalar]) -> Quantization:
    grouped = size is not None and int(size) > 0
    return Quantization(
        method=method,
        bits=bits,
        granularity="group" if grouped else "channel",
        group_size=int(size) if grouped else None,
        parameters=parameters,
    )


def _made_by(meta: Mapping[str, Any]) -> str:
    made = meta.get("quantizer", "unknown")
    return ", ".join(map(str, made)) if isinstance(made, list) else str(made)
