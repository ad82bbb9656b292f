"""What a diagnosis says: where a pair's update lives and what rounding does to it. It explains and never judges.

One fact in it does decide something: whether any tensor of the pair differs at all (`Diagnosis.identical`).
"""

from collections.abc import Sequence

from pydantic import Field

from app.catalog.frozen import Frozen
from app.catalog.precisions import PRECISIONS, parse
from app.errors import InvalidRequest
from app.evidence.evaluation import CheckpointInfo

DIAGNOSIS_VERSION = "overlap-2"
"""Must change whenever the engine's numbers change; part of a diagnosis's content address."""

DEFAULT_DIAGNOSED = ("rtn-int8", "rtn-int4", "rtn-int4-g128", "bnb-nf4", "bnb-fp4")
"""The default precisions of a diagnosis; those whose groups do not divide a model's columns are left out."""

NOTE = (
    "Beyond telling whether the two models have the same weights, a diagnosis explains a result and never decides a "
    "verdict. How many codes stay the same does not by itself "
    "predict whether knowledge comes back: in trials, models whose 4-bit codes were 93 to 95 % unchanged stayed "
    "forgetful at 4 bits. Only an audit measures that."
)


class Rounding(Frozen):
    """What one precision does to an update."""

    precision: str = Field(examples=["rtn-int4"])
    same_code: float = Field(
        description="Share of the weights whose code is the same in both models, each rounded with its own steps.",
        examples=[0.968],
    )
    median_step: float | None = Field(
        description="Median over all weights of |unlearned - original| / delta, delta being the step of the original "
        "(for NF4 and FP4 the width of the bucket that the original weight lies in). Within 0.1 %; null when it is "
        "infinite: the original is all zeros there.",
        examples=[0.021],
    )
    p99_step: float | None = Field(description="The 99th percentile of the same.", examples=[0.4])
    zero_bucket: float | None = Field(
        description="Share of the changed weights whose original lies in the bucket that becomes zero (for FP4, also "
        "in those of its smallest codes, 1/192 of a block's largest weight); null when none changed.",
        examples=[0.41],
    )


class Part(Frozen):
    """An update, and what each precision does to it."""

    weights: int = Field(examples=[16777216])
    changed: float = Field(description="Share of the weights that differ at all.", examples=[0.93])
    update: float = Field(description="||unlearned - original||_F", examples=[0.31])
    relative_update: float | None = Field(
        description="||unlearned - original||_F / ||original||_F; null when the original is all zeros.",
        examples=[0.0021],
    )
    non_finite: int = Field(description="Weights that are NaN or infinite in either model; counted as zeros.")
    roundings: list[Rounding] = Field(description="In the order of the request.")


class ModulePart(Part):
    """One linear layer of the decoder."""

    module: str = Field(examples=["model.layers.30.mlp.down_proj"])
    shape: list[int] = Field(description="[out_features, in_features]", examples=[[4096, 11008]])


class OtherPart(Frozen):
    """The update of a tensor that no precision quantizes: an embedding, the output layer, a norm, a bias."""

    name: str = Field(
        description="The module if the tensor is its weight, else the tensor. `norms and biases` stands for all norms "
        "and biases that did not change.",
        examples=["lm_head"],
    )
    parameters: int = Field(examples=[131072000])
    changed: float = Field(description="Share of its values that differ at all.", examples=[0.0002])
    changed_rows: float | None = Field(
        description="Share of the rows (of an embedding or output layer: tokens) in which any value differs; null for "
        "vectors.",
        examples=[0.0002],
    )
    largest_row_update: float | None = Field(
        description="The largest ||unlearned - original|| / ||original|| of a row, where a row's norm counts as at "
        "least a quarter of the root mean square of all. 1: a row was set to zero, which silences a token of an output "
        "layer; 2: it was negated. Null for vectors, and when the original is all zeros.",
        examples=[1.0],
    )
    update: float = Field(description="||unlearned - original||_F")
    relative_update: float | None = Field(
        description="||unlearned - original||_F / ||original||_F; null when the original is all zeros.",
        examples=[0.014],
    )
    non_finite: int = Field(description="Values that are NaN or infinite in either model; left out of the norms.")


class Diagnosis(Frozen):
    """A weights-only comparison of a pair."""

    schema_: str = Field(default="lethe-diagnosis-1", alias="schema")
    lethe: str
    version: str = DIAGNOSIS_VERSION
    note: str = NOTE
    original: CheckpointInfo
    unlearned: CheckpointInfo
    precisions: list[str]
    skipped: dict[str, str] = Field(description="Precision -> why it cannot be applied to this model.")
    overall: Part = Field(description="All decoder linears together.")
    modules: list[ModulePart] = Field(description="Largest relative update first.")
    left_out: dict[str, int] = Field(
        description="What no precision quantizes (embeddings, lm_head, norms) -> parameters; compared in `others`."
    )
    others: list[OtherPart] = Field(
        default=[],
        description="What no precision quantizes: every matrix, and every norm and bias that changed; what changed "
        "comes first. Empty in diagnoses of earlier versions, which did not compare it. A tied output layer "
        "that only one of the two saved is not compared.",
    )
    identical: bool | None = Field(
        default=None,
        description="Whether every tensor has the same values in both models, whatever their dtypes: then nothing was "
        "unlearned, and an audit's verdict is `not_forgotten`. Null in diagnoses of earlier versions.",
    )


def check_diagnosable(names: Sequence[str]) -> list[str]:
    """The names without duplicates, if a diagnosis can round to each.

    Raises:
        InvalidRequest: `unknown_precision`; `precision_unavailable` for one whose codes are not a function of the
            weights alone, or that has no codes.
    """
    if not names:
        raise InvalidRequest("invalid_request", f"name at least one precision, such as {', '.join(DEFAULT_DIAGNOSED)}")
    for name in names:
        if not _diagnosable(parse(name).name):
            if parse(name).double_quantization:
                plain = name.removesuffix("-dq")
                raise InvalidRequest("precision_unavailable", f"{name} has the same codes as {plain}; use that")
            known = ", ".join(other for other in PRECISIONS if _diagnosable(other))
            raise InvalidRequest(
                "precision_unavailable", f"{name} cannot be diagnosed from weights; these can: {known}"
            )
    return list(dict.fromkeys(names))


def _diagnosable(name: str) -> bool:
    return PRECISIONS[name].method == "rtn" or name in ("bnb-nf4", "bnb-fp4")
