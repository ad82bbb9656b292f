"""The proof for a checkpoint that came already quantized: what its live modules hold.

Nothing is quantized here. For every linear layer that the unquantized architecture has, it is measured whether the file
holds a packed weight, and that the weight which the live module computes with takes at most 2^bits values per group.
Layers that were left unquantized are listed with their parameters; coverage is the quantized share.

Given the checkpoint that it is said to be made from, it is also shown that it was made from that one (`provenance`).
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from app.checkpoints.format.digests import identity
from app.checkpoints.format.files import CheckpointFiles
from app.errors import EvaluationFailed
from app.evidence.artifacts import FORMAT_PRECISIONS, LIBRARIES
from app.evidence.evaluation import Census, ModuleCensus, PrecisionInfo
from app.evidence.quantization import Quantization
from worker.engine.artifacts import packed
from worker.engine.artifacts.provenance import Comparison
from worker.engine.artifacts.quantized_module import most_distinct, read_module
from worker.engine.checkpoint import Opened, read_config
from worker.engine.layers.linear import Survey, survey
from worker.engine.proof.evidence import finite
from worker.engine.quantizers import availability, bnb
from worker.engine.quantizers.ticks import Ticks

_CODES = ("uint8", "int8", "int32", "float8_e4m3fn", "float8_e5m2")


def check_library(format_precision: str) -> None:
    """Raise unless the library that opens such artifacts is installed.

    Raises:
        EvaluationFailed: `precision_unavailable`, naming the extra to install.
    """
    reason = availability.shipped_unavailable(format_precision)
    if reason is not None:
        raise EvaluationFailed("precision_unavailable", f"{format_precision}: {reason}")


class Base(NamedTuple):
    """The checkpoint that an artifact is said to be made from."""

    files: CheckpointFiles

    @property
    def digest(self) -> str:
        """Its digest, over the bytes that were compared; reads the rest."""
        return identity(self.files).digest


def hold(
    opened: Opened, format_precision: str, progress: Callable[[int, int], None], base: Base | None = None
) -> tuple[PrecisionInfo, Census]:
    """Make an opened artifact ready for its first forward, and take its census.

    Raises:
        EvaluationFailed: `not_quantized`; `artifact_not_of_pair`; `precision_unavailable` when this machine would
            misread it.
    """
    found = opened.files.quantization
    if found is None or FORMAT_PRECISIONS[found.method] != format_precision:
        is_ = "not quantized" if found is None else f"quantized by {found.method}"
        raise EvaluationFailed(
            "not_quantized", f"{opened.files.path} is {is_}, so it cannot be evaluated at {format_precision}"
        )
    codes = prepare(opened.model, opened.files)
    census = take(opened.model, opened.files, codes, Ticks(progress, len(codes)), base)
    return describe(opened.files), census


def prepare(model: PreTrainedModel, files: CheckpointFiles) -> dict[str, str]:
    """Make a model that was just loaded ready for its first forward; returns module -> dtype of its packed weight.

    Raises:
        EvaluationFailed: `precision_unavailable` when bitsandbytes would misread it.
    """
    method = _quantization(files).method
    if method == "bitsandbytes":
        return _prepare_bnb(model)
    if method == "compressed-tensors":
        return _decompress(model)
    return {name: _dtype(module.qweight) for name, module in model.named_modules() if packed.is_packed(module)}


def take(
    model: PreTrainedModel, files: CheckpointFiles, codes: dict[str, str], ticks: Ticks, base: Base | None = None
) -> Census:
    """The census of a prepared model.

    Args:
        model: As it will be evaluated.
        files: Its checkpoint's.
        codes: What `prepare` returned.
        ticks: Called once per module.
        base: What it is said to be made from; without it, errors and provenance stay null.

    Raises:
        EvaluationFailed: `not_quantized` when no module is quantized, or when one that says it is holds more values
            than its bits allow; `artifact_not_of_pair`.
    """
    quantization = _quantization(files)
    before = _unquantized(files)
    candidates = dict(_candidates(before, codes, model))
    comparison = Comparison(base.files, files, model, candidates, ticks.alive) if base else None
    modules: dict[str, ModuleCensus] = {}
    left: Counter[str] = Counter(before.left_out)
    for name in comparison.ordered() if comparison else candidates:
        shape, module = candidates[name], model.get_submodule(name)
        if codes.get(name) not in _CODES:
            left[name] += shape[0] * shape[1]
            if comparison:
                comparison.unquantized(name, module)
            continue
        found = read_module(module, codes[name], quantization)
        distinct = most_distinct(found)
        if tuple(found.weight.shape) != shape or (distinct is not None and distinct > 2**found.bits):
            raise EvaluationFailed(
                "not_quantized",
                f"{files.path}: {name} says that it is quantized to {found.bits} bits, but its live weight"
                f" {list(found.weight.shape)} takes {distinct} values in a group",
            )
        left.pop(name, None)  # an output layer, where that is quantized too
        shown = comparison.evidence(name, module, found) if comparison else None
        modules[name] = ModuleCensus(
            module=name,
            shape=list(shape),
            quantizer=FORMAT_PRECISIONS[quantization.method],
            bits=found.bits,
            granularity=f"group of {found.group_size}" if found.group_size else found.granularity,
            max_distinct=distinct,
            packed_dtype=found.packed,
            relative_error=finite(shown.relative_error) if shown else None,
            largest_row_error=finite(shown.largest_row_error) if shown else None,
            explained_error=finite(shown.explained_error) if shown else None,
        )
        ticks()
    if not modules:
        raise EvaluationFailed(
            "not_quantized",
            f"{files.path} says that it is quantized ({quantization.method}), but none of its"
            f" {len(before.shapes)} linear layers is",
        )
    proven = [modules[name] for name in candidates if name in modules]
    quantized = sum(module.shape[0] * module.shape[1] for module in proven)
    return Census(
        modules=proven,
        parameters_total=before.total,
        parameters_quantized=quantized,
        coverage=quantized / before.total,
        left_out=dict(left),
        provenance=comparison.conclude(proven, base.digest) if comparison and base else None,
    )


def describe(files: CheckpointFiles) -> PrecisionInfo:
    """What the artifact's config says about its format, and the library that opened it."""
    found = _quantization(files)
    format_precision = FORMAT_PRECISIONS[found.method]
    library = LIBRARIES[format_precision][0]
    return PrecisionInfo(
        name=format_precision,
        method=found.method,
        bits=found.bits,
        granularity=found.granularity,
        group_size=found.group_size,
        library=library,
        version=availability.installed(library) or "unknown",
        parameters=found.parameters,
    )


def _quantization(files: CheckpointFiles) -> Quantization:
    assert files.quantization is not None
    return files.quantization


def _unquantized(files: CheckpointFiles) -> Survey:
    """The same architecture without weights: its linear layers, and what no precision quantizes."""
    config = read_config(files)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    architecture: Any = AutoModelForCausalLM
    with torch.device("meta"):
        return survey(architecture.from_config(config))


def _candidates(before: Survey, codes: dict[str, str], model: PreTrainedModel) -> Iterator[tuple[str, tuple[int, int]]]:
    """Every linear layer that is or could have been quantized, [out, in]; some tools quantize the output layer too."""
    yield from before.shapes.items()
    for name in codes.keys() - before.shapes.keys():
        module: Any = model.get_submodule(name)
        yield name, (module.out_features, module.in_features)


def _prepare_bnb(model: PreTrainedModel) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        layer: Any = module
        if isinstance(module, bnb.bnb.nn.Linear4bit):
            layer.support_avx512bf16_for_cpu = False  # before the first forward (engine/README.md, "Repacked weights")
            if not _reads_back(layer):
                raise EvaluationFailed(
                    "precision_unavailable",
                    f"bitsandbytes misreads {name} on the {layer.weight.device.type}: its {layer.in_features} columns"
                    " are not a multiple of the block; audit this artifact on a GPU",
                )
        elif not isinstance(module, bnb.bnb.nn.Linear8bitLt):
            continue
        found[name] = _dtype(layer.weight)
    return found


def _reads_back(layer: Any) -> bool:
    """Whether bitsandbytes' kernel reads this weight as it was packed; see `bnb._read_back`."""
    state = layer.weight.quant_state
    if state.nested and layer.weight.device.type == "cpu":
        return bool(layer.in_features % state.blocksize == 0)
    return state.nested or bnb._read_back(layer)


def _decompress(model: PreTrainedModel) -> dict[str, str]:
    """Unpack the weights now, as the first forward would, into the dtype that the model computes in."""
    from compressed_tensors.compressors import decompress_module

    found: dict[str, str] = {}
    for name, module in model.named_modules():
        layer: Any = module
        if getattr(getattr(layer, "quantization_scheme", None), "weights", None) is not None:
            found[name] = _dtype(layer.weight_packed if hasattr(layer, "weight_packed") else layer.weight)
    # Module by module: the library's decompress_model() moves all parameters into an offload cache of its own.
    for name in found:
        layer = model.get_submodule(name)
        decompress_module(layer)
        # MXFP4 and NVFP4 are unpacked into bfloat16, whatever the model computes in.
        layer.weight = nn.Parameter(layer.weight.detach().to(model.dtype), requires_grad=False)
    quantizer = getattr(model, "hf_quantizer", None)  # none where transformers found nothing packed
    if quantizer is not None:
        quantizer.compressor.remove_decompression_hook(model)
    return found


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
