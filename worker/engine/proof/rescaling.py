"""What AWQ and SmoothQuant multiply and divide, and proof that one undoes the other.

Both multiply the columns of some layers by factors c, and divide what precedes these layers by the same factors: a
norm's weight (and bias), or the rows of a linear layer. The model's outputs stay the same, and

    W is near diag(r) W_base diag(c)

No factor is free. After a norm, c is what the norm was divided by; after a linear layer, 1 / r of its rows; elsewhere
1. r is fitted row by row, by least squares, where a linear layer precedes another, and is 1 elsewhere. Which layer
precedes which is llm-compressor's list for the architecture.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from worker.engine.proof.evidence import Factors, parts

_LAYER = re.compile(r"^(.*?\.\d+)\.")
_FITTED = 0.05
"""How far a bias may be from the value by its row's fitted factor; fits to 4-bit weights are off by a few per cent."""

Vector = Callable[[str], Tensor | None]
"""A parameter's name -> its numbers on the CPU; None where there are none."""


class Rescaling:
    """The factors of one rescaled model. Ask for modules in the order of `ordered`."""

    def __init__(self, model: PreTrainedModel, shapes: Mapping[str, tuple[int, int]], base: Vector, live: Vector):
        """Finds out which layer precedes which.

        Args:
            model: The rescaled model, for its architecture and names.
            shapes: Its linear layers, [out, in].
            base: The unquantized model's parameters.
            live: The rescaled model's.
        """
        self._shapes, self._base, self._live = shapes, base, live
        self._offset = 1.0 if type(model).__name__.startswith("Gemma") else 0.0  # their norms multiply by 1 + weight
        self._front = _fronts(model, shapes)
        self._behind = {front: module for module, front in self._front.items()}
        self._rows: dict[str, Tensor] = {}

    @property
    def known(self) -> bool:
        """Whether there is a list for this architecture."""
        return bool(self._front)

    def ordered(self) -> list[str]:
        """The modules, those in front of others first."""
        return sorted(self._shapes, key=lambda name: name not in self._behind)

    def factors(self, module: str, weight: Tensor, original: Tensor) -> Factors:
        """The factors of the rows [out, 1] and columns [1, in] of this module's weight."""
        columns = self._columns(module).to(weight.device).view(1, -1)
        rows = torch.ones(weight.shape[0], 1, device=weight.device)
        if module in self._behind:
            for where, w in parts(original, weight.device):
                q = weight[where].float()
                w = torch.where(w.isfinite() & q.isfinite(), w * columns, 0)
                rows[where] = ((q.nan_to_num() * w).sum(1, keepdim=True) / (w * w).sum(1, keepdim=True)).nan_to_num(1.0)
            # A fused layer also computes queries and keys, or gates: only its last rows feed the layer that undoes
            # the factors.
            rows[: weight.shape[0] - self._shapes[self._behind[module]][1]] = 1.0
            self._rows[module] = rows.view(-1).cpu()
        return rows, columns

    def explains(self, name: str) -> bool:
        """Whether the layers after a changed norm or bias compensate for the change; all modules must be known.

        Those layers prove the norm's weight themselves: their columns are compared with it undone.
        """
        module, _, last = name.rpartition(".")
        base, live = self._base(name), self._live(name)
        if module not in self._behind or base is None or live is None or base.shape != live.shape:
            return False
        if module not in self._shapes:
            divided = self._divided(module)
            return last == "weight" or (last == "bias" and divided is not None and _near(live * divided, base))
        return last == "bias" and module in self._rows and _near(live, base * self._rows[module])

    def _columns(self, module: str) -> Tensor:
        width = self._shapes[module][1]
        front = self._front.get(module)
        if front is None:
            return torch.ones(width)
        if front in self._shapes:  # without rows where it was found unquantized already
            return 1 / self._rows.get(front, torch.ones(width))[-width:]
        divided = self._divided(front)
        return torch.ones(width) if divided is None else divided

    def _divided(self, norm: str) -> Tensor | None:
        """The factors that a norm was divided by."""
        base, live = self._base(f"{norm}.weight"), self._live(f"{norm}.weight")
        if base is None or live is None:
            return None
        return torch.where(base == live, 1.0, (base.float() + self._offset) / (live.float() + self._offset))


def _near(ours: Tensor, theirs: Tensor) -> bool:
    ours, theirs = ours.float(), theirs.float()
    return bool(((ours - theirs).abs() <= _FITTED * theirs.abs() + 1e-6).all())


def _fronts(model: PreTrainedModel, shapes: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """Linear layer -> the norm or linear layer before it, by llm-compressor's list; empty where it has none."""
    # Imported here, not at the top: llm-compressor takes seconds, and most evaluations do not need it.
    from llmcompressor.modifiers.transform.awq import AWQ_DYNAMIC_MAPPING_REGISTRY, AWQ_MAPPING_REGISTRY

    kind = type(model).__name__
    listed: Any = AWQ_DYNAMIC_MAPPING_REGISTRY[kind](model) if kind in AWQ_DYNAMIC_MAPPING_REGISTRY else None
    layers: dict[str, list[str]] = {}
    for name, _ in model.named_modules():
        if found := _LAYER.match(name):
            layers.setdefault(found[1], []).append(name)
    fronts: dict[str, str] = {}
    for names in layers.values():
        for mapping in listed or AWQ_MAPPING_REGISTRY.get(kind, ()):
            front = [name for name in names if _matches(mapping.smooth_layer, name)]
            behind = [name for name in names if any(_matches(pattern, name) for pattern in mapping.balance_layers)]
            if len(front) == 1 and all(_fits(shapes, front[0], name) for name in behind):
                fronts |= dict.fromkeys(behind, front[0])
    return fronts


def _matches(pattern: str, name: str) -> bool:
    expression = pattern.removeprefix("re:")
    return bool(re.match(expression, name)) if pattern.startswith("re:") else name == pattern


def _fits(shapes: Mapping[str, tuple[int, int]], front: str, behind: str) -> bool:
    """Whether the rows of one are the columns of the other; AWQ does not rescale values that several queries share."""
    if behind not in shapes:
        return False
    if front not in shapes:
        return True
    times = {"qkv_proj": 3, "gate_up_proj": 2}.get(front.rpartition(".")[2], 1)
    return shapes[front][0] == times * shapes[behind][1]
