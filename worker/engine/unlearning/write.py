"""Writing the unlearned checkpoint: the original's files, with new values where training changed something."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from app.checkpoints.format.content import published
from app.checkpoints.format.files import CheckpointFiles
from app.errors import CheckpointRefused
from worker.engine.stored import as_tensor

Change = Callable[[Tensor], Tensor]
"""The original's stored tensor -> the value to store, of the same shape and dtype."""


def stored_names(model: PreTrainedModel, files: CheckpointFiles) -> dict[str, list[str]]:
    """Parameter -> the tensors that hold it in the checkpoint (two, where tied weights were both saved).

    Raises:
        CheckpointRefused: `checkpoint_unsupported` when a parameter is stored under another name or in another shape,
            as where transformers fuses experts while it loads.
    """
    prefix = f"{model.base_model_prefix}."
    # transformers renames (and fuses) while it loads; what it only renamed is the parameter itself here too.
    state = revert_weight_conversion(model, dict(model.state_dict(keep_vars=True)))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, list[str]] = {name: [] for name in names.values()}
    for stored, header in files.tensors.items():
        for name in (stored, prefix + stored, stored.removeprefix(prefix)):
            if name in state and tuple(state[name].shape) == header.shape and id(state[name]) in names:
                found[names[id(state[name])]].append(stored)
                break
    lost = [name for name, places in found.items() if not places]
    if lost:
        raise CheckpointRefused(
            "checkpoint_unsupported",
            f"{files.path}: transformers holds {len(lost)} parameters in another form than the files, first {lost[0]};"
            " such a model (fused experts, mostly) cannot be written back, and so not be unlearned here",
        )
    return found


def write(files: CheckpointFiles, out: Path, changes: Mapping[str, Change]) -> int:
    """Write the checkpoint to the empty folder `out`; returns how many stored parameters have another value.

    Every tensor that is not in `changes` (by its stored name) is the original's, bit for bit, and so are config and
    tokenizer. One file's tensors are in memory at a time.
    """
    shards: dict[str, list[str]] = {}
    for name, header in files.tensors.items():
        shards.setdefault(header.file, []).append(name)
    for path in published(files.path):
        if path.suffix != ".safetensors":
            shutil.copyfile(path, out / path.name)
    for name, data in files.contents.items():
        (out / name).write_bytes(data)  # as they were when the model was opened
    changed = 0
    for shard, names in sorted(shards.items()):
        tensors: dict[str, Tensor] = {}
        for name in names:
            tensors[name] = as_tensor(files, name, files.weights.read(name))
            if name in changes:
                new = changes[name](tensors[name]).contiguous()
                changed += int((new != tensors[name]).sum())
                tensors[name] = new
        save_file(tensors, out / shard, metadata={"format": "pt"})
    return changed


def whole(parameter: Tensor) -> Change:
    """The parameter's value as it is now."""
    return lambda stored: parameter.detach().to("cpu", stored.dtype)


def rows(parameter: Tensor, mask: Tensor) -> Change:
    """The parameter's value in the rows of the mask, the original's in the others."""

    def change(stored: Tensor) -> Tensor:
        new = stored.clone()
        new[mask] = parameter.detach().to("cpu", stored.dtype)[mask]
        return new

    return change


def plus(delta: Tensor) -> Change:
    """The original's value and an update, added in float32."""
    return lambda stored: (stored.float() + delta.to("cpu", torch.float32)).to(stored.dtype)
