"""Opening a checkpoint directory as a model and its tokenizer: safetensors only, local only, no code of its own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from app.checkpoints.files import CheckpointFiles, inspect
from app.errors import CheckpointRefused, EvaluationFailed
from worker.engine.precision.quiet import no_bars


@dataclass(frozen=True)
class Opened:
    """A checkpoint, ready to be quantized and evaluated."""

    files: CheckpointFiles
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def pick_device(device: str | None = None) -> torch.device:
    """The named device, or the first GPU if there is one, or the CPU."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def compute_dtype(device: torch.device) -> torch.dtype:
    """float32 on the CPU, bfloat16 on a GPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def open_checkpoint(
    path: Path,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    *,
    quantized: bool = False,
    spread: bool = False,
) -> Opened:
    """Load a checkpoint in eval mode.

    Args:
        path: A directory with config, safetensors weights and tokenizer.
        device: A torch device; by default the first GPU, else the CPU.
        dtype: Of weights and computation; by default float32 on the CPU, bfloat16 on a GPU.
        quantized: Whether it may be quantized already; then it is opened by the library of its format.
        spread: Put the layers one after the other on all GPUs (accelerate's `device_map="auto"`).

    Raises:
        CheckpointRefused: What `app.checkpoints.files.inspect` refuses, and what transformers cannot load completely.
        EvaluationFailed: `out_of_memory`; `precision_unavailable` when the format's library is missing.
    """
    files = inspect(path, quantized=quantized)
    place = pick_device(device)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever the architecture's own checks raise
        raise CheckpointRefused(
            "checkpoint_unsupported", f"{path}/config.json is none that transformers can use: {_first_line(error)}"
        ) from error
    # After the config, which the tokenizer reads too: its errors would be reported as the tokenizer's.
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointRefused(
            "checkpoint_no_tokenizer", f"{path}: its tokenizer does not load: {_first_line(error)}"
        ) from error
    try:
        found, absent = _load(files, place, dtype or compute_dtype(place), spread=spread)
        model: Any = found.eval().requires_grad_(False)  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError as error:
        raise EvaluationFailed("out_of_memory", f"{path} does not fit into the memory of {place}") from error
    except SafetensorError as error:
        raise CheckpointRefused(
            "checkpoint_unreadable", f"{path}: its weights do not load: {_first_line(error)}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        if files.quantization is not None and isinstance(error, ImportError):
            raise EvaluationFailed(
                "precision_unavailable", f"{path}: the library of its format cannot be imported here: {error}"
            ) from error
        raise CheckpointRefused(
            "checkpoint_unsupported",
            f"{path}: transformers cannot open it as a causal language model: {_first_line(error)}",
        ) from error
    if absent:
        raise CheckpointRefused(
            "checkpoint_unsupported",
            f"{path}: {len(absent)} weights of {type(model).__name__} are missing or misshapen, first"
            f" {sorted(map(str, absent))[0]}; save the whole causal language model with save_pretrained()",
        )
    return Opened(files, model, tokenizer)


def _load(
    files: CheckpointFiles, place: torch.device, dtype: torch.dtype, *, spread: bool
) -> tuple[PreTrainedModel, list[Any]]:
    """The model, and what of it the files do not hold: it is filled with random numbers by transformers."""
    quantization = files.quantization
    if quantization is not None and quantization.method in ("gptq", "awq"):
        from worker.engine.precision import packed  # gptqmodel, an extra that takes seconds to import

        model = packed.load(files.path, place, quantization.method)
        tensors = [*model.named_parameters(), *model.named_buffers()]
        return model, [name for name, tensor in tensors if tensor.is_meta]
    loader: Any = AutoModelForCausalLM
    # bitsandbytes' int8 layers cannot be moved once they are loaded, nor layers that are spread over GPUs.
    where: dict[str, Any] = {}
    if spread:
        where = {"device_map": "auto"}
    elif quantization is not None and quantization.method == "bitsandbytes":
        where = {"device_map": {"": str(place)}}
    with no_bars():
        model, loading = loader.from_pretrained(
            files.path,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **where,
        )
    return model if where else model.to(place), [*loading["missing_keys"], *loading["mismatched_keys"]]


def context_window(model: PreTrainedModel) -> int | None:
    """Tokens that the model can attend to, from its config; None when it names no limit."""
    config = model.config.get_text_config(decoder=True)
    window = getattr(config, "max_position_embeddings", None)
    return window if isinstance(window, int) and window > 0 else None


def _first_line(error: Exception) -> str:
    """What a library says, without the advice that follows it."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
