"""Opening a checkpoint as a model and its tokenizer: exactly the bytes that were hashed, and no code of its own.

The audited party writes the folder, so transformers never sees it: weights are read and hashed by `files.weights` and
passed on as tensors, and everything else (config, tokenizer; for artifacts the weights too, because their libraries
need a file) is in a private folder that holds only the bytes that were hashed.

Tokenizer, end tokens, context window and attention implementation are the original's for every role of an audit
(`interface`): none of them is where a model keeps, or hides, what it knows.
"""

import json
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from app.checkpoints import pair
from app.checkpoints.format import configs, content
from app.checkpoints.format.digests import Identity, check_digest, identity
from app.checkpoints.format.files import BUFFERS, CheckpointFiles, inspect
from app.errors import CheckpointRefused, EvaluationFailed
from worker.engine.quantizers.quiet import no_progress_bars
from worker.engine.stored import as_tensor

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Opened:
    """A checkpoint, ready to be quantized and evaluated."""

    files: CheckpointFiles
    identity: Identity
    """Its digests, over the bytes that were loaded."""
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    differences: Mapping[str, str]
    """Field -> how its config or tokenizer differs from those of the checkpoint whose interface it has."""


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
    interface: CheckpointFiles | None = None,
    expected: str | None = None,
    progress: Progress | None = None,
) -> Opened:
    """Load a checkpoint in eval mode. Each of its files is read once.

    Args:
        path: A directory with config, safetensors weights and tokenizer.
        device: A torch device; by default the first GPU, else the CPU.
        dtype: Of weights and computation; by default float32 on the CPU, bfloat16 on a GPU.
        quantized: Whether it may be quantized already; then the library of its format opens it.
        spread: Distribute the layers over all GPUs (accelerate's `device_map="auto"`).
        interface: The checkpoint whose tokenizer, end tokens, window and attention are used; by default its own.
        expected: The digest that it must have.
        progress: Called with ("checkpoint", tensors read, tensors in all); may raise to stop.

    Raises:
        CheckpointRefused: What `app.checkpoints.format.files.inspect` refuses, and what transformers cannot load
            completely; `checkpoint_changed` when it does not have the expected digest.
        EvaluationFailed: `out_of_memory`; `precision_unavailable` when the format's library is missing.
    """
    files = inspect(path, quantized=quantized)
    spoken = interface or files
    place = pick_device(device)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory(prefix="lethe-checkpoint-") as private:
        config = read_config(files)
        differences: dict[str, str] = {}
        if interface is not None:
            differences = dict(all_differences(interface, files))
            _take_window(config, read_config(interface))
        end_tokens = None if spoken.end_tokens is None else list(spoken.end_tokens)
        config.eos_token_id = end_tokens
        # After the config, which the tokenizer reads too: its errors would be reported as the tokenizer's.
        tokenizer = _read_tokenizer(spoken)
        tick = _ticker(progress, len(files.tensors))
        try:
            with _as_refusal(files):
                attention = configs.attention(spoken.json(content.CONFIG))
                if files.quantization is None:
                    tensors = _tensors(files, tick)
                    known = _known(files, expected)
                    found, loading = _load(tensors, config, place, dtype or compute_dtype(place), attention, spread)
                    del tensors
                else:
                    folder = Path(private)
                    _write(files, config, folder, tick)
                    _write_tokenizer(spoken, folder)  # gptqmodel needs one
                    known = _known(files, expected)
                    found, loading = _load_artifact(files, folder, place, dtype or compute_dtype(place), attention)
        except torch.OutOfMemoryError as error:
            raise EvaluationFailed("out_of_memory", f"{path} does not fit into the memory of {place}") from error
    model: Any = found.eval().requires_grad_(False)  # type: ignore[no-untyped-call]
    _check_loaded(files, model, loading)
    model.generation_config = GenerationConfig(eos_token_id=end_tokens)  # type: ignore[no-untyped-call]
    return Opened(files, known, model, tokenizer, differences)


def read_config(files: CheckpointFiles) -> PreTrainedConfig:
    """The config as transformers understands it, without what points to other files.

    Raises:
        CheckpointRefused: `checkpoint_unsupported`.
    """
    with tempfile.TemporaryDirectory(prefix="lethe-config-") as private:
        _dump(configs.cleaned(files.json(content.CONFIG)), Path(private) / content.CONFIG)
        try:
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                private, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # whatever the architecture's own checks raise
            raise CheckpointRefused(
                "checkpoint_unsupported",
                f"{files.path}/config.json cannot be used by transformers: {_first_line(error)}",
            ) from error
    return config


def all_differences(original: CheckpointFiles, other: CheckpointFiles) -> list[pair.Difference]:
    """The fields in which configs and tokenizers differ, as files and as transformers understands the configs, which
    fills in defaults and older spellings."""
    mine, theirs = (
        configs.cleaned(json.loads(read_config(files).to_json_string(use_diff=False))) for files in (original, other)
    )
    found = dict(pair.differences(original, other) + pair.differing("config", mine, theirs, both=False))
    return [pair.Difference(field, message) for field, message in found.items()]


def context_window(model: PreTrainedModel) -> int | None:
    """The number of tokens that the model can attend to, from its config; None when that gives no limit."""
    return _window(model.config)


def _window(config: PreTrainedConfig) -> int | None:
    window = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return window if isinstance(window, int) and window > 0 else None


def _take_window(config: PreTrainedConfig, original: PreTrainedConfig) -> None:
    window = _window(original)
    if window is not None and _window(config) != window:
        config.get_text_config(decoder=True).max_position_embeddings = window


def _read_tokenizer(files: CheckpointFiles) -> PreTrainedTokenizerBase:
    with tempfile.TemporaryDirectory(prefix="lethe-tokenizer-") as private:
        _dump(
            configs.cleaned(files.json(content.CONFIG)), Path(private) / content.CONFIG
        )  # some classes follow from it
        _write_tokenizer(files, Path(private))
        try:
            return AutoTokenizer.from_pretrained(private, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # tokenizers raises plain Exception
            raise CheckpointRefused(
                "checkpoint_no_tokenizer", f"{files.path}: its tokenizer cannot be loaded: {_first_line(error)}"
            ) from error


def _write_tokenizer(files: CheckpointFiles, folder: Path) -> None:
    for name in content.TOKENIZER:
        if name == content.TOKENIZER_CONFIG and name in files.contents:
            _dump(configs.cleaned_tokenizer(files.json(name)), folder / name)
        elif name in files.contents:
            (folder / name).write_bytes(files.contents[name])


def _tensors(files: CheckpointFiles, tick: Callable[[], None]) -> dict[str, torch.Tensor]:
    """All tensors, as views of the memory that they were read into."""
    return {name: as_tensor(files, name, data) for name, data in files.weights.read_all(files.tensors, tick).items()}


def _known(files: CheckpointFiles, expected: str | None) -> Identity:
    known = identity(files)
    check_digest(files.path, known.digest, expected)
    return known


def _load(
    tensors: Mapping[str, torch.Tensor],
    config: PreTrainedConfig,
    place: torch.device,
    dtype: torch.dtype,
    attention: str | None,
    spread: bool,
) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    """The model with these tensors, and transformers' loading report: parameters that they lack are random numbers."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"{type(config).__name__} has no causal language model")
    architecture: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with no_progress_bars():
        model, loading = architecture.from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
            **({"device_map": "auto"} if spread else {}),
        )
    return (model if spread else model.to(place)), loading


def _load_artifact(
    files: CheckpointFiles, folder: Path, place: torch.device, dtype: torch.dtype, attention: str | None
) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    """The model in a private folder, opened by the library of its format, and the loading report, as above."""
    assert files.quantization is not None
    method = files.quantization.method
    if method in ("gptq", "awq"):
        from worker.engine.artifacts import packed  # gptqmodel, an extra that takes seconds to import

        model = packed.load(folder, place, method)
        tensors = [*model.named_parameters(), *model.named_buffers()]
        return model, {"missing_keys": [name for name, tensor in tensors if tensor.is_meta]}
    loader: Any = AutoModelForCausalLM
    # bitsandbytes' int8 layers cannot be moved once they are loaded.
    where: dict[str, Any] = {"device_map": {"": str(place)}} if method == "bitsandbytes" else {}
    with no_progress_bars():
        model, loading = loader.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation=attention,
            output_loading_info=True,
            **where,
        )
    return model if where else model.to(place), loading


def _check_loaded(files: CheckpointFiles, model: PreTrainedModel, loading: Mapping[str, Any]) -> None:
    """Raise unless the model holds everything that the files hold, and nothing else.

    A tensor that is not loaded would be in the digest without being in the model.
    """
    absent = [*loading["missing_keys"], *loading.get("mismatched_keys", ())]
    if absent:
        raise CheckpointRefused(
            "checkpoint_unsupported",
            f"{files.path}: {len(absent)} weights of {type(model).__name__} are missing or misshapen, first"
            f" {sorted(map(str, absent))[0]}; save the whole causal language model with save_pretrained()",
        )
    surplus = [name for name in loading.get("unexpected_keys", ()) if not name.endswith(BUFFERS)]
    if surplus and files.quantization is None:
        raise CheckpointRefused(
            "checkpoint_unsupported",
            f"{files.path} holds {len(surplus)} tensors that {type(model).__name__} does not have, first"
            f" {sorted(surplus)[0]}; save the model again, without them, with save_pretrained()",
        )


def _write(files: CheckpointFiles, config: PreTrainedConfig, folder: Path, tick: Callable[[], None]) -> None:
    """Config and weights as one safetensors file, tensor by tensor as they are read."""
    own = configs.cleaned(files.json(content.CONFIG))
    window = _window(config)
    # gptqmodel and transformers read the file, not the object.
    for key in ("max_position_embeddings", "n_positions"):
        if window is not None and key in own:
            own[key] = window
    _dump(own | {"eos_token_id": config.eos_token_id}, folder / content.CONFIG)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in files.tensors.items():
        end = at + files.weights.size(name)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with (folder / "model.safetensors").open("wb") as out:
        out.write(struct.pack("<Q", len(raw)) + raw)
        for name in files.tensors:
            for data in files.weights.spans(name, 1 << 26):
                out.write(data)
            tick()


def _dump(config: Mapping[str, Any], file: Path) -> None:
    file.write_text(json.dumps(dict(config)), encoding="utf-8")


def _ticker(progress: Progress | None, total: int) -> Callable[[], None]:
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress("checkpoint", done, total)

    return tick


@contextmanager
def _as_refusal(files: CheckpointFiles) -> Iterator[None]:
    """Translate what libraries raise while they load into our errors."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        if files.quantization is not None and isinstance(error, ImportError):
            raise EvaluationFailed(
                "precision_unavailable", f"{files.path}: the library of its format cannot be imported here: {error}"
            ) from error
        raise CheckpointRefused(
            "checkpoint_unsupported",
            f"{files.path}: transformers cannot open it as a causal language model: {_first_line(error)}",
        ) from error


def _first_line(error: Exception) -> str:
    """A library's message, without the advice that follows it."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
