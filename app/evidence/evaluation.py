"""What an evaluation returns: per-item scores and the proof that the precision was applied.

These structures hold no text of the forget set and no generated text, so that purging a forget set leaves nothing of it
behind.
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, create_model

from app.catalog.frozen import Frozen, Scalar
from app.catalog.metrics import METRICS, MetricId

Role = Literal["original", "unlearned", "retrained"]
"""The checkpoints of an audit (README.md of the project, "Words")."""
ROLES: tuple[Role, ...] = ("original", "unlearned", "retrained")

SUITE_VERSION = "muse-3"
"""Must change whenever the engine's scores change; part of an evaluation's content address."""


class PrecisionInfo(Frozen):
    """How the weights were quantized."""

    name: str = Field(examples=["rtn-int4-g128"])
    method: str = Field(description="full, rtn, bnb, gptq, awq, ...; an artifact's quant_method.")
    bits: int | None = Field(description="Bits per quantized weight; null for full precision.")
    granularity: str | None = Field(default=None, description="channel, tensor, or group; null for full precision.")
    group_size: int | None = None
    library: str = Field(examples=["lethe", "bitsandbytes"])
    version: str
    parameters: dict[str, Scalar] = Field(default_factory=dict)


class ModuleCensus(Frozen):
    """The proof for one quantized module."""

    module: str = Field(examples=["model.layers.0.self_attn.q_proj"])
    shape: list[int] = Field(description="[out_features, in_features]")
    quantizer: str
    bits: int
    granularity: str
    max_distinct: int | None = Field(
        description="Largest number of distinct values in any group, at most 2^bits; null when the backend packs."
    )
    packed_dtype: str | None = Field(default=None, description="The backend's packed type, e.g. uint8 for nf4.")
    relative_error: float | None = Field(
        description="||Q(W) - W||_F / ||W||_F against the unquantized module. For an artifact, against the checkpoint "
        "that it is said to be made from, and null where `provenance` says why it was not compared. For weights that "
        "AWQ rescaled, the factors of rows and columns are undone first."
    )
    largest_row_error: float | None = Field(
        default=None, description="The same for the row (output channel) where it is largest; null in older reports."
    )
    explained_error: float | None = Field(
        default=None,
        description="The largest relative error that rounding to this many bits, with compensation, explains for this "
        "module's weights; null in older reports.",
    )


class Provenance(Frozen):
    """What shows that an artifact was made from the checkpoint that it is said to be made from."""

    base: str = Field(description="The digest of that checkpoint.")
    median_error: float = Field(description="Median of the modules' relative errors.", examples=[0.092])
    rescaled: bool = Field(
        description="Whether the artifact's weights are rescaled, as AWQ's are: the relative errors are then those of "
        "weights whose factors per row and per column were undone. No factor is free: what precedes a layer must have "
        "been divided by it."
    )
    identical: int = Field(
        description="Tensors that it leaves unquantized and that equal the base's, rounded to their dtype; in a "
        "rescaled artifact, norms and biases within layers need not."
    )
    not_compared: dict[str, str] = Field(
        default={},
        description="Module -> why it has no relative error. Only in older reports: such artifacts are refused now.",
    )


class Census(Frozen):
    """The proof that a precision was applied to a whole model."""

    modules: list[ModuleCensus]
    parameters_total: int
    parameters_quantized: int
    coverage: float = Field(description="parameters_quantized / parameters_total")
    left_out: dict[str, int] = Field(
        description="Modules that stay unquantized (embeddings, lm_head, norms) -> parameters."
    )
    provenance: Provenance | None = Field(default=None, description="For an artifact; null otherwise.")


class GenerationScores(Frozen):
    """VerbMem, VerbMem sampled or KnowMem: one score per item, in the forget set's order."""

    kind: Literal["generation"] = "generation"
    scores: list[float] = Field(description="ROUGE-L F1 per item, 0 to 1; VerbMem sampled: the mean over its samples.")
    flags: dict[str, list[int]] = Field(
        default_factory=dict,
        description="Flag (prompt_truncated, non_finite, ...) -> indices of the items that carry it.",
    )
    extras: dict[str, list[float | None]] = Field(
        default_factory=dict,
        description="Further per-item columns, all 0 to 1. Teacher-forced over the true answer's tokens: "
        "exact_memorization, extraction_strength, probability, and truth_ratio where items give perturbed answers. For "
        "VerbMem sampled: best_of_k. Null only where an item gives nothing to compute a value from.",
    )


class TextStatistics(Frozen):
    """PrivLeak's inputs for one subset of texts; lists are per text, in the forget set's order."""

    tokens: list[int] = Field(description="Tokens scored per text (after the first).")
    loss: list[float] = Field(description="Mean negative log-probability, nats per token.")
    zlib_ratio: list[float] = Field(description="Loss divided by the length in bytes of the zlib-compressed text.")
    min_k: dict[str, list[float]] = Field(
        description='Percent ("5" ... "60") -> mean negative log-probability of the least likely k percent of tokens.'
    )


class PrivLeakScores(Frozen):
    """The membership statistics of PrivLeak; `judgement.statistics` makes AUC and PrivLeak of them."""

    kind: Literal["privleak"] = "privleak"
    forget: TextStatistics
    holdout: TextStatistics
    retain: TextStatistics | None = None
    flags: dict[str, list[int]] = Field(
        default_factory=dict, description='"forget.truncated", "holdout.non_finite", ... -> indices of texts.'
    )


Scores = GenerationScores | PrivLeakScores
SCORES: dict[str, type[Scores]] = {"generation": GenerationScores, "membership": PrivLeakScores}
"""Kind of a metric -> what is measured of it."""


class CheckpointInfo(Frozen):
    """What was evaluated."""

    uri: str
    digest: str = Field(description="sha256:… over everything that was read of it: tensors, config, tokenizer.")
    architecture: str = Field(examples=["LlamaForCausalLM"])
    parameters: int
    dtype: str = Field(description="The dtype of the stored weights, e.g. BF16.")
    tensors: str | None = Field(
        default=None,
        description="sha256:… over its tensors alone, however they are spread over files; null where an earlier version"
        " evaluated it.",
    )


class ForgetSetInfo(Frozen):
    """What it was evaluated on: counts and digests, no content."""

    digest: str
    counts: dict[str, int] = Field(description="Items per file of the bundle, e.g. verbmem/forget: 100.")
    unavailable: dict[str, str] = Field(description="Metric -> why it cannot be measured on this forget set.")
    derived: dict[str, str] = Field(default_factory=dict, description="Metric -> how its items were derived.")
    duplicates: dict[str, list[int]] = Field(
        default={},
        description="File -> indices of the items that repeat an earlier item of the file, a few-shot example "
        "(knowmem/) or a text of privleak/forget (privleak/holdout). No metric counts them.",
        examples=[{"verbmem/forget": [3, 7]}],
    )
    auc_retrained: float | None = Field(default=None, description="The published AUC of a retrained model (MUSE).")
    ignored: list[str] = Field(
        default=[], description="Files that were given but not used, because MUSE's own bundles have them."
    )


class EngineInfo(Frozen):
    """What ran it: everything that could explain a different number."""

    suite: str = SUITE_VERSION
    lethe: str
    python: str
    torch: str
    transformers: str
    device: str
    dtype: str = Field(description="The dtype of the computation.")
    seed: int
    settings: dict[str, Scalar] = Field(description="Engine settings that can change numbers.")


class _Evaluation(Frozen):
    """One checkpoint at one precision on one forget set."""

    checkpoint: CheckpointInfo
    precision: PrecisionInfo
    forget_set: ForgetSetInfo
    engine: EngineInfo
    interface: str | None = Field(
        default=None,
        description="The digest of the original's config and tokenizer, because it was run with the original's "
        "tokenizer, end tokens, window and attention.",
    )
    differences: dict[str, str] = Field(
        default={},
        description="Field of its config, generation config or tokenizer -> how it differs from the original's.",
        examples=[{"config.rope_theta": "10000.0 against 500000.0"}],
    )
    census: Census | None = Field(description="Null for full precision only.")
    seconds: dict[str, float] = Field(description="Stage -> wall seconds. Never compared, never part of a digest.")

    def scores(self, metric: MetricId) -> Scores | None:
        """The scores of a metric; None where it was not measured."""
        found: Scores | None = getattr(self, metric)
        return found

    def generation(self, metric: MetricId) -> GenerationScores | None:
        """The scores of a metric whose items are scored one by one; None for all others."""
        found = self.scores(metric)
        return found if isinstance(found, GenerationScores) else None

    @property
    def membership(self) -> PrivLeakScores | None:
        """The scores that PrivLeak is computed from; None where it was not measured."""
        found = self.scores("privleak")
        return found if isinstance(found, PrivLeakScores) else None


if TYPE_CHECKING:

    class Evaluation(_Evaluation):
        """`Evaluation` with one field for each metric of the catalog, named after it."""

else:
    Evaluation = create_model(
        "Evaluation",
        __base__=_Evaluation,
        __module__=__name__,
        __doc__=_Evaluation.__doc__,
        **{metric.id: (SCORES[metric.kind] | None, None) for metric in METRICS.values()},
    )
