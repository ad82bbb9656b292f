"""Decoder linears as they lie on disk: found by name and shape, read in slices of rows, no model around them.

Slices are read by their offset in the file. A memory map would do the same, but its pages count as this process's
memory for as long as the kernel keeps them, so that two 7B checkpoints would look like 28 GB.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from app.checkpoints.files import BUFFERS, OUTPUT, CheckpointFiles, Tensor
from app.errors import CheckpointRefused

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

# GPT-2's Conv1D stores [in, out].
_TRANSPOSED = ("gpt2", "openai-gpt", "decision_transformer")
_EMBEDDING = re.compile(r"embed|^wte$|^wpe$")
LAYER = re.compile(r"\.\d+\.")
"""In the names of what stands in a numbered layer."""
_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Linear:
    """One weight of a checkpoint, [out, in] however it is stored."""

    folder: Path
    tensor: Tensor
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        """[out_features, in_features]"""
        rows, columns = self.tensor.shape
        return (columns, rows) if self.transposed else (rows, columns)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Rows start:stop of the [out, in] weight, in float32."""
        dtype = DTYPES[self.tensor.dtype]
        rows, columns = self.tensor.shape
        first, last = (0, rows) if self.transposed else (start, stop)
        raw = bytearray((last - first) * columns * dtype.itemsize)
        with (self.folder / self.tensor.file).open("rb", buffering=0) as file:
            file.seek(self.tensor.start + first * columns * dtype.itemsize)
            view, got = memoryview(raw), 0
            while got < len(raw):
                count = file.readinto(view[got:])
                if not count:
                    raise CheckpointRefused("checkpoint_changed", f"{file.name} became shorter while it was read")
                got += count
        stored = torch.frombuffer(raw, dtype=dtype).view(last - first, columns)
        return (stored[:, start:stop].T.contiguous() if self.transposed else stored).float()


def decoder_linears(files: CheckpointFiles) -> tuple[dict[str, Linear], dict[str, int]]:
    """Module -> weight for every linear layer that precisions quantize, and what stays -> parameters.

    What `layers.targets` finds in the loaded model, told from names and shapes: matrices named `….weight` that are
    neither embeddings nor the output layer. An output layer by another name is known by its place, outside of the
    numbered layers, and its rows, one per token.

    Raises:
        CheckpointRefused: `checkpoint_unsupported` for a dtype that is not a plain float, or when nothing is found.
    """
    found: dict[str, Linear] = {}
    left: Counter[str] = Counter()
    for name, tensor in files.tensors.items():
        module, _, last = name.rpartition(".")
        if name.endswith(BUFFERS):
            continue
        if len(tensor.shape) < 2:
            left["norms and biases"] += math.prod(tensor.shape)
        elif last != "weight" or len(tensor.shape) > 2 or _is_outer(name, module, tensor, files.vocab_size):
            left[module if last == "weight" else name] += math.prod(tensor.shape)
        elif tensor.dtype not in DTYPES:
            raise CheckpointRefused(
                "checkpoint_unsupported",
                f"{files.path}: {name} is stored as {tensor.dtype}; save the model as float32, float16 or bfloat16",
            )
        else:
            found[module] = _linear(files, module, tensor)
    if not found:
        raise CheckpointRefused(
            "checkpoint_unsupported", f"{files.path} holds no linear layer's weight, so there is nothing to quantize"
        )
    return found, dict(left)


def linear(files: CheckpointFiles, module: str) -> Linear | None:
    """The weight of a loaded model's linear layer; None where the files hold none of its name in plain floats.

    Base models save their layers without the name of the part that a head was put on ("model.", "transformer.").
    """
    for name in (module, module.partition(".")[2]):
        tensor = files.tensors.get(f"{name}.weight")
        if tensor is not None and len(tensor.shape) == 2 and tensor.dtype in DTYPES:
            return _linear(files, name, tensor)
    return None


def rows(files: CheckpointFiles, name: str) -> Linear:
    """Any tensor of plain floats as a matrix: its rows are those of its first dimension, a vector is one column."""
    tensor = files.tensors[name]
    shape = (tensor.shape[0] if tensor.shape else 1, math.prod(tensor.shape[1:]))
    return Linear(files.path, tensor._replace(shape=shape), transposed=False)


def chunks(files: CheckpointFiles, name: str) -> Iterator[torch.Tensor]:
    """A tensor as it is stored, in runs of rows that are no larger than they need be."""
    tensor = files.tensors[name]
    with safe_open(files.path / tensor.file, framework="pt") as file:
        if not tensor.shape:
            yield file.get_tensor(name)
            return
        rows = max(1, _AT_ONCE // max(1, math.prod(tensor.shape[1:])))
        part = file.get_slice(name)
        for start in range(0, tensor.shape[0], rows):
            yield part[start : start + rows]


def _linear(files: CheckpointFiles, module: str, tensor: Tensor) -> Linear:
    conv1d = files.model_type in _TRANSPOSED and module.rpartition(".")[2].startswith("c_")
    return Linear(files.path, tensor, conv1d)


def _is_outer(name: str, module: str, tensor: Tensor, vocab_size: int) -> bool:
    if name.endswith(OUTPUT) or _EMBEDDING.search(module.rpartition(".")[2]):
        return True
    return tensor.shape[0] >= vocab_size and not LAYER.search(name)
