"""Decoder linears as they are stored on disk: found by name and shape, read in slices of rows, without a model.

Slices go through `files.weights`, which hashes what it reads. (A memory map's pages would count as this process's
memory for as long as the kernel keeps them, so that two 7B checkpoints would look like 28 GB.)
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from app.checkpoints.format.files import BUFFERS, OUTPUT, CheckpointFiles, Tensor
from app.errors import CheckpointRefused

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Plain floats, by safetensors' names."""
_OTHERS = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip

# GPT-2's Conv1D stores [in, out].
_TRANSPOSED = ("gpt2", "openai-gpt", "decision_transformer")
_EMBEDDING = re.compile(r"embed|^wte$|^wpe$")
LAYER = re.compile(r"\.\d+\.")
"""Matches the names of tensors in numbered layers."""
_AT_ONCE = 1 << 22


@dataclass
class Linear:
    """One weight of a checkpoint as [out, in], however it is stored."""

    files: CheckpointFiles
    name: str
    transposed: bool
    _whole: torch.Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, int]:
        """[out_features, in_features]"""
        shape = self.files.tensors[self.name].shape
        rows, columns = shape[0] if shape else 1, math.prod(shape[1:])
        return (columns, rows) if self.transposed else (rows, columns)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Rows start:stop of the [out, in] weight, in float32. Ask for them in order, from 0 to the last.

        A weight that is stored transposed is held in memory until then.
        """
        if not self.transposed:
            row = self.shape[1] * torch_dtype(self.files, self.name).itemsize
            data = self.files.weights.span(self.name, start * row, stop * row)
            return as_tensor(self.files, self.name, data).reshape(stop - start, self.shape[1]).float()
        if start == 0:
            self._whole = as_tensor(self.files, self.name, self.files.weights.read(self.name)).float()
        assert self._whole is not None
        found = self._whole[:, start:stop].T.contiguous()
        if stop == self.shape[0]:
            self._whole = None
        return found


def torch_dtype(files: CheckpointFiles, name: str) -> torch.dtype:
    """The dtype of a stored tensor.

    Raises:
        CheckpointRefused: `checkpoint_unsupported` for a dtype that torch does not have.
    """
    stored = files.tensors[name].dtype
    found = (DTYPES | _OTHERS).get(stored)
    if found is None:
        raise CheckpointRefused(
            "checkpoint_unsupported", f"{files.path}: {name} is stored as {stored}, which Lethe does not read"
        )
    return found


def as_tensor(files: CheckpointFiles, name: str, data: bytearray) -> torch.Tensor:
    """Bytes of a tensor, or of some of its rows, as a tensor that shares their memory."""
    shape, dtype = files.tensors[name].shape, torch_dtype(files, name)
    if not data:
        return torch.empty(shape, dtype=dtype)
    found = torch.frombuffer(data, dtype=dtype)
    return found.view(-1, *shape[1:]) if shape else found[0]


def decoder_linears(files: CheckpointFiles) -> tuple[dict[str, Linear], dict[str, int]]:
    """Module -> weight for every linear layer that precisions quantize, and what stays -> parameters.

    The same as `layers.targets` finds in the loaded model, but from names and shapes: matrices named `….weight` that
    are neither embeddings nor the output layer. An output layer with another name is recognised by its place outside
    the numbered layers and by its rows, one per token.

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
            found[module] = _linear(files, module)
    if not found:
        raise CheckpointRefused(
            "checkpoint_unsupported", f"{files.path} holds no weight of a linear layer, so there is nothing to quantize"
        )
    return found, dict(left)


def linear(files: CheckpointFiles, module: str) -> Linear | None:
    """The weight of a loaded model's linear layer; None where the files hold none by that name in plain floats.

    Base models save their layers without the prefix that a model with a head has ("model.", "transformer.").
    """
    for name in (module, module.partition(".")[2]):
        tensor = files.tensors.get(f"{name}.weight")
        if tensor is not None and len(tensor.shape) == 2 and tensor.dtype in DTYPES:
            return _linear(files, name)
    return None


def rows(files: CheckpointFiles, name: str) -> Linear:
    """Any tensor of plain floats as a matrix whose rows are its first dimension; a vector becomes one column."""
    return Linear(files, name, transposed=False)


def chunks(files: CheckpointFiles, name: str) -> Iterator[torch.Tensor]:
    """A tensor as it is stored, in small runs of rows."""
    row = max(1, math.prod(files.tensors[name].shape[1:]))
    at_once = max(1, _AT_ONCE // row) * row * torch_dtype(files, name).itemsize
    for data in files.weights.spans(name, at_once):
        yield as_tensor(files, name, data)


def _linear(files: CheckpointFiles, module: str) -> Linear:
    conv1d = files.model_type in _TRANSPOSED and module.rpartition(".")[2].startswith("c_")
    return Linear(files, f"{module}.weight", conv1d)


def _is_outer(name: str, module: str, tensor: Tensor, vocab_size: int) -> bool:
    if name.endswith(OUTPUT) or _EMBEDDING.search(module.rpartition(".")[2]):
        return True
    return tensor.shape[0] >= vocab_size and not LAYER.search(name)
