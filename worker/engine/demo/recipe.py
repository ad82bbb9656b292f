"""The constants of the tiny world, chosen by trial so that a laptop builds it in minutes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from app.catalog import methods


@dataclass(frozen=True)
class TrainRecipe:
    """How an original (and the retrained model) is trained: AdamW, cosine schedule, float32.

    `initial_spread` is the standard deviation of the first weights: with transformers' 0.02, meant for far wider
    models, the same training ended at KnowMem 10 instead of 80. `smoothing` (of labels) keeps the model from being so
    sure of each token that the gradient of what it is to forget vanishes.
    """

    hidden: int = 128
    layers: int = 2
    heads: int = 4
    feed_forward: int = 384
    context: int = 512
    initial_spread: float = 0.07
    epochs: int = 26
    batch: int = 8
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    warm_up: float = 0.05
    smoothing: float = 0.1
    page_rounds: int = 2


@dataclass(frozen=True)
class UnlearnRecipe:
    """How a model is made to forget: GA with GDR at a constant rate, and what the stop rule asks of the watched half.

    The steps are small: AdamW moves a weight by at most about `learning_rate` in one, so the default never carries
    many weights half a 4-bit bucket (about 0.012 here). `forgotten_*` are the shares at which the watched items count
    as forgotten, `utility_floor` is relative to where utility began.
    """

    learning_rate: float = 5e-5
    alpha: float = 1.5
    forget_articles: int = 4
    forget_pages: int = 2
    retain_articles: int = 6
    retain_pages: int = 6
    max_steps: int = 300
    check_every: int = 10
    forgotten_passages: float = 0.6
    forgotten_answers: float = 0.3
    forgotten_membership: float = 0.6
    utility_floor: float = 0.6


STRONG: Final = UnlearnRecipe(learning_rate=2e-3, alpha=5.0, max_steps=120, check_every=5)
"""Steps so large that forgetting survives rounding to the grid that the original lies on.

On seeds 0, 1 and 2 the native pair is then `robust`, at a utility of 0.75 to 0.8. In between, on seed 0: at a rate of
5e-4 (alpha 1.5) all is recovered still, at 1e-3 (alpha 3) a little.
"""


_REMEDIATION: Final = {
    "modules": "linear",
    "batch_size": 6,
    "retain_batch_size": 12,
    "max_steps": 150,
    "alpha": 3.0,
    "stop": {"every": 5},
}
SURE: Final = methods.recipe("sure", "ga_gdr", {**_REMEDIATION, "learning_rate": 1e-3, "saliency_percentile": 75.0})
"""Unlearns the native original so that it survives 4 bits, in the most salient quarter of its linear layers.

Chosen by trial on seed 0, VerbMem / KnowMem forget / AUC / KnowMem retain: 4 / 24 / 0.88 / 81 in full precision,
8 / 25 / 0.89 / 78 at rtn-int4. With alpha 8 and a rate of 3e-4, nothing was forgotten in 110 steps.
"""
LORA: Final = methods.recipe(
    "lora", "ga_gdr", {**_REMEDIATION, "learning_rate": 1.5e-3, "lora_rank": 8, "lora_alpha": 16.0}
)
"""The same by adapters of rank 8 on all of the decoder's linear layers. KnowMem forget / KnowMem retain on seed 0:
14 / 74 in full precision, 14 / 74 at rtn-int4, 18 / 70 at bnb-nf4. At a rate of 2e-3 utility was 64 and 56, too close
to its floor to be shown to lie above it; at 1e-3 with alpha 5, 60 % of KnowMem forget remained."""


@dataclass(frozen=True)
class Recipe:
    """The whole world: how many articles of each sort, and how they are learned and forgotten."""

    forget: int = 24
    retain: int = 32
    utility: int = 14
    holdout: int = 40
    vocabulary: int = 1536
    bits: int = 4
    train: TrainRecipe = TrainRecipe()
    unlearn: UnlearnRecipe = UnlearnRecipe()

    def to_json(self) -> dict[str, Any]:
        """As plain data, for `demo.json`, the cache's key and the child processes."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Recipe:
        """The inverse of `to_json`."""
        return cls(**{**data, "train": TrainRecipe(**data["train"]), "unlearn": UnlearnRecipe(**data["unlearn"])})
