"""The unlearning methods: one entry says all there is to say about each; the engine's module of that name does it.

A **loss** is what is minimised, a **method** what may change. A new method is one file in
`worker/engine/unlearning/methods` and one entry here. What can be asked for, the CLI's and the API's lists, the ladder,
the model card and the README's table follow from the entry.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class UnlearningMethod:
    """A method of unlearning."""

    name: str
    title: str
    """What people read."""
    module: str
    """The file of `worker/engine/unlearning/methods` that does it."""
    summary: str
    """What it may change: a clause, in small letters."""
    defaults: Mapping[str, Any]
    """What it takes for a hyperparameter that is not given, where that is not the field's own default."""
    source: str
    """Where method and defaults come from: a clause."""
    needs_retain: bool = False
    """Whether it reads raw/retain whatever the loss is."""
    library: str | None = None
    """What it needs beyond torch and transformers, as it is distributed."""
    ladder: tuple[Mapping[str, Any], ...] = field(default=())
    """Hyperparameters of the recipes that `auto` tries of it, cheap before dear; empty: it tries none."""


UNLEARNING_METHODS: Mapping[str, UnlearningMethod] = MappingProxyType(
    {
        one.name: one
        for one in (
            UnlearningMethod(
                "plain",
                title="plain",
                module="plain",
                summary="every parameter, in small steps",
                defaults={"learning_rate": 1e-5, "modules": "all"},
                source="arXiv 2410.16454: AdamW, constant rate, 10 epochs on NEWS, alpha 1",
            ),
            # Among the decoder's linear layers, because those are what precisions quantize: where `lm_head` or the
            # embeddings have the largest gradient, it would train these alone and survive without a test.
            UnlearningMethod(
                "sure",
                title="SURE",
                module="sure",
                summary="the most salient of the decoder's linear layers, in large steps",
                defaults={"learning_rate": 1e-4, "stop": {}},
                source="arXiv 2410.16454, section 5; its rate is not published: 1e-4 is ours, and so is the stop rule,"
                " because large steps soon ruin a model",
                ladder=(
                    {"saliency_percentile": 90, "learning_rate": 1e-4},
                    {"saliency_percentile": 75, "learning_rate": 1e-4},
                    {"saliency_percentile": 75, "learning_rate": 3e-4},
                ),
            ),
            UnlearningMethod(
                "lora",
                title="LoRA",
                module="lora",
                summary="low-rank adapters of the decoder's linear layers, merged at the end",
                defaults={"learning_rate": 1e-4, "stop": {}},
                source="arXiv 2602.13151, its authors' configuration; the stop rule is ours",
                library="peft",
                ladder=({"learning_rate": 1e-4}, {"learning_rate": 1e-3}),
            ),
            UnlearningMethod(
                "control",
                title="control",
                module="plain",
                summary="every parameter, in SURE's large steps",
                defaults={"learning_rate": 1e-4, "modules": "all", "stop": {}},
                source="ours, to tell what SURE's mask is worth; nobody ships it",
            ),
        )
    }
)
"""Name -> its entry, in the order in which methods are listed and `auto` tries them: SURE from few modules and small
steps to more of both, then LoRA. The order is ours: neither paper publishes such a list."""


def summaries() -> str:
    """Every method with what it may change, on one line."""
    return "; ".join(f"{one.name}: {one.summary}" for one in UNLEARNING_METHODS.values())
