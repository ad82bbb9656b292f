"""LoRA (arXiv 2602.13151): the original stays frozen, low-rank adapters learn, and are merged at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel

from app.catalog.recipes import Hyperparameters
from app.errors import InvalidRequest, UnlearningFailed
from worker.engine.artifacts import packed
from worker.engine.inference.subject import Progress
from worker.engine.layers.linear import targets
from worker.engine.unlearning import write
from worker.engine.unlearning.objective import Objective
from worker.engine.unlearning.trainable import Trainable

_ADAPTER = "default"


def make_trainable(
    model: PreTrainedModel, chosen: Hyperparameters, objective: Objective, work: Path, progress: Progress
) -> Trainable:
    """Adapters on the decoder's linear layers; what they add is merged into the layers' weights at the end.

    Raises:
        InvalidRequest: what `inject` raises; UnlearningFailed: what `merged` raises, once training has ended.
    """
    inject(model, chosen)
    adapters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return Trainable(adapters, lambda: {f"{layer}.weight": write.plus(delta) for layer, delta in merged(model).items()})


def inject(model: PreTrainedModel, chosen: Hyperparameters) -> list[str]:
    """Put adapters on the decoder's linear layers, in place; returns these layers' names. Only adapters are trained.

    The adapters are float32, whatever the model is: steps of 1e-4 would be lost in bfloat16.

    Raises:
        InvalidRequest: `invalid_request` for a target module that is no linear layer of the decoder.
    """
    linear = list(targets(model))
    wanted = chosen.lora_target_modules
    if wanted is not None:
        for target in wanted:
            if not any(_is(name, target) for name in linear):
                known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
                raise InvalidRequest(
                    "invalid_request",
                    f"lora_target_modules: {target} is no linear layer of the decoder; known: {known}",
                )
        linear = [name for name in linear if any(_is(name, target) for target in wanted)]
    settings = LoraConfig(
        r=chosen.lora_rank,
        lora_alpha=chosen.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=chosen.lora_dropout,
        target_modules=linear,
        bias="none",
    )
    # peft imports gptqmodel, where it is installed, to ask whether a layer is one of its own; importing it prints, and
    # draws random numbers that adapters of the first run in a process would start from.
    packed.import_now()
    torch.manual_seed(chosen.seed)
    inject_adapter_in_model(settings, model, _ADAPTER)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return linear


def merged(model: PreTrainedModel) -> dict[str, Tensor]:
    """Layer -> ΔW = (lora_alpha / r) · B A, float32, in the shape of the layer's weight: what merging adds.

    Raises:
        UnlearningFailed: `adapters_unmoved` when it is zero everywhere, as where no gradient reached the adapters.
    """
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            layer: Any = module
            found[name] = layer.get_delta_weight(_ADAPTER).detach().float()
    if not any(bool(delta.any()) for delta in found.values()):
        raise UnlearningFailed(
            "adapters_unmoved",
            "no adapter moved: training changed nothing; check the learning rate and that gradients reach the adapters",
        )
    return found


def _is(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
