"""Audits as requests and responses show them."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from app.catalog.metrics import DEFAULT_METRICS, METRICS, MetricId
from app.catalog.plans import DEFAULT_PLAN, PLANS, PlanName
from app.checkpoints.schemas import CheckpointRef
from app.database.states import AuditState, EvaluationState
from app.evidence.artifacts import NAME, Of
from app.evidence.evaluation import Role
from app.evidence.quantization import QUANT_METHODS, Quantization
from app.http.request_types import Name, Reference, RequestModel
from app.judgement.policy import Policy
from app.judgement.verdict import Outcome

WHY_FULL = "full is part of every plan: what is forgotten, and what comes back, is measured against full precision"


class NewPlan(RequestModel):
    """What to run; unknown names are refused."""

    name: PlanName | None = Field(
        default=None,
        description="A named list of precisions, instead of `precisions`: "
        + "; ".join(f"`{name}` is {', '.join(members)}" for name, members in PLANS.items()),
    )
    precisions: list[str] = Field(
        default=[DEFAULT_PLAN],
        min_length=1,
        max_length=100,
        description="Precisions; the name of a plan stands for all of its precisions. `full` is added in front when it "
        "is missing; duplicates are dropped.",
        examples=[["full", "rtn-int8", "rtn-int4", "gptq-int4@retain"]],
    )
    metrics: list[str] = Field(
        default=list(DEFAULT_METRICS),
        min_length=1,
        max_length=20,
        description=f"Of {', '.join(METRICS)}; hyphens work as underscores. Metrics that cannot be measured on the "
        "forget set are left out, and the response says why.",
        examples=[list(DEFAULT_METRICS)],
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> "NewPlan":
        if self.name is not None:
            if "precisions" in self.model_fields_set and self.precisions != [self.name]:
                raise ValueError("give a name or precisions, not both; a plan's name may be one of the precisions")
            self.precisions = [self.name]
        return self


def _named(value: Any) -> Any:
    """`"paper"` is short for `{"name": "paper"}`."""
    return {"name": value} if isinstance(value, str) else value


PlanIn = Annotated[NewPlan, BeforeValidator(_named, json_schema_input_type=NewPlan | PlanName)]


class NewArtifact(RequestModel):
    """An already quantized checkpoint, made from a model of the pair, to be audited as it is."""

    uri: Reference = Field(
        description="A path, id or digest, as for the other checkpoints; in the format of "
        + ", ".join(QUANT_METHODS)
        + "."
    )
    of: Of = Field(
        default="unlearned",
        description="The model that it was made from. An artifact of the unlearned model is measured against the "
        "original's artifact in the same format, or, if there is none, against the original in full precision.",
    )
    name: str | None = Field(
        default=None,
        pattern=f"^{NAME.pattern}$",
        description="Its precision is named `shipped:<name>`. The folder's name when left out.",
        examples=["news-npo-gptq"],
    )


class NewAudit(RequestModel):
    """The pair to audit. Checkpoints are named by id, digest or path (which registers them on the way)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "release 2026-03",
                    "original": "/models/llama-2-7b-news",
                    "unlearned": "/models/llama-2-7b-news-npo",
                    "forget_set": "01987a3c-5a0e-7cc4-a6a5-6a6d0f6b8c11",
                    "plan": {"precisions": ["full", "rtn-int8", "rtn-int4", "gptq-int4@retain"]},
                    "policy": {"recovery_margin": 0.05},
                }
            ]
        }
    )

    name: Name | None = Field(default=None, description="`<original> / <unlearned>` when left out.")
    original: Reference = Field(description="The checkpoint before unlearning.")
    unlearned: Reference = Field(description="The checkpoint that claims to have forgotten.")
    retrained: Reference | None = Field(
        default=None, description="A checkpoint that never saw the forget set: the gold reference, when there is one."
    )
    forget_set: Reference = Field(description="Id or digest of a forget set.")
    plan: PlanIn = Field(default_factory=NewPlan)
    policy: Policy = Field(default_factory=Policy, description="What differs from the default thresholds.")
    artifacts: list[NewArtifact] = Field(
        default=[],
        max_length=20,
        description="The very files that will be deployed: each artifact of the unlearned model is one more precision. "
        "To audit nothing else, set the plan's precisions to `full`.",
        examples=[[{"uri": "/models/llama-2-7b-news-npo-gptq", "of": "unlearned"}]],
    )


class NewJudgement(RequestModel):
    """How to judge the stored scores of a finished audit again."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "release 2026-03, stricter", "policy": {"utility_floor": 0.8}}]}
    )

    name: Name | None = Field(default=None, description="The earlier audit's when left out.")
    policy: Policy = Field(
        default_factory=Policy,
        description="What differs from this version's default thresholds; the earlier audit's policy is not used.",
    )


class PlanOut(BaseModel):
    """The plan as it runs."""

    precisions: list[str] = Field(examples=[["full", "rtn-int8", "rtn-int4"]])
    metrics: list[MetricId] = Field(description="As requested; those in `left_out` are not measured.")
    left_out: dict[str, str] = Field(
        description="Metric -> why it is not measured. A metric of `metrics` that is not measured keeps the audit from "
        "being `robust` unless the policy's `may_be_missing` names it.",
        examples=[{"verbmem": "verbmem/forget.json is missing or empty"}],
    )
    note: str = WHY_FULL


class PartOut(BaseModel):
    """One evaluation of an audit: one checkpoint at one precision."""

    role: Role
    precision: str = Field(examples=["rtn-int4"])
    evaluation: str = Field(description="The evaluation's id; audits share evaluations.")
    reused: bool = Field(description="It had succeeded before this audit asked for it.")
    state: EvaluationState
    attempt: int = Field(description="How many times a worker has claimed it.")
    stage: str | None = Field(description="What the worker is doing.", examples=["verbmem"])
    done: int = Field(description="Progress within the stage, out of `total`.", examples=[32])
    total: int = Field(examples=[100])
    error_code: str | None
    error_detail: str | None


class ArtifactOut(BaseModel):
    """An artifact of an audit."""

    name: str = Field(examples=["news-npo-gptq"])
    of: Of
    checkpoint: CheckpointRef
    quantization: Quantization


class AuditSummary(BaseModel):
    """An audit in a list."""

    id: str = Field(examples=["01987a3c-5a0e-7cc4-a6a5-6a6d0f6b8c11"])
    name: str = Field(examples=["release 2026-03"])
    state: AuditState
    verdict: Outcome | None = Field(description="Null until the audit is finished.")
    forget_set: str = Field(description="The forget set's id.")
    original: str = Field(description="The checkpoint's id.")
    unlearned: str = Field(description="The checkpoint's id.")
    retrained: str | None = Field(description="The checkpoint's id.")
    judged_again_from: str | None = Field(
        description="The audit whose stored scores it judges again; null for an audit that measured its own."
    )
    created_at: datetime
    finished_at: datetime | None


class AuditLinks(BaseModel):
    """Related resources."""

    self: str
    events: str
    report: str
    cancel: str
    diagnosis: str | None = Field(description="What the weights alone show; ready before the report, and part of it.")


class AuditOut(BaseModel):
    """An audit with all its evaluations."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "01987a3c-5a0e-7cc4-a6a5-6a6d0f6b8c11",
                    "name": "release 2026-03",
                    "state": "running",
                    "verdict": None,
                    "forget_set": {
                        "id": "01987a3b-0f00-7a11-8c00-1f2e3d4c5b6a",
                        "name": "MUSE-News",
                        "digest": "sha256:…",
                    },
                    "checkpoints": {
                        "original": {
                            "id": "01987a3c-0000-7cc4-a6a5-6a6d0f6b8c11",
                            "name": "llama-2-7b-news",
                            "uri": "/models/llama-2-7b-news",
                            "digest": "sha256:…",
                        }
                    },
                    "artifacts": [],
                    "plan": {
                        "precisions": ["full", "rtn-int4"],
                        "metrics": ["knowmem_forget", "knowmem_retain"],
                        "left_out": {"verbmem": "verbmem/forget.json is missing or empty"},
                        "note": WHY_FULL,
                    },
                    "policy": Policy().model_dump(mode="json"),
                    "policy_digest": "sha256:…",
                    "parts": [
                        {
                            "role": "original",
                            "precision": "full",
                            "evaluation": "01987a3c-5a0f-7cc4-a6a5-6a6d0f6b8c11",
                            "reused": False,
                            "state": "running",
                            "attempt": 1,
                            "stage": "knowmem_forget",
                            "done": 32,
                            "total": 100,
                            "error_code": None,
                            "error_detail": None,
                        }
                    ],
                    "judged_again_from": None,
                    "judgements": [],
                    "created_at": "2026-03-02T09:30:00Z",
                    "finished_at": None,
                    "links": {
                        "self": "/v1/audits/01987a3c-5a0e-7cc4-a6a5-6a6d0f6b8c11",
                        "events": "/v1/audits/01987a3c-5a0e-7cc4-a6a5-6a6d0f6b8c11/events",
                        "report": "/v1/audits/01987a3c-5a0e-7cc4-a6a5-6a6d0f6b8c11/report",
                        "cancel": "/v1/audits/01987a3c-5a0e-7cc4-a6a5-6a6d0f6b8c11/cancel",
                        "diagnosis": "/v1/diagnoses/01987a3c-5a10-7cc4-a6a5-6a6d0f6b8c11",
                    },
                }
            ]
        }
    )

    class ForgetSetRef(BaseModel):
        """The audit's forget set."""

        id: str
        name: str
        digest: str

    id: str
    name: str
    state: AuditState
    verdict: Outcome | None = Field(description="Null until the audit is finished.")
    forget_set: ForgetSetRef
    checkpoints: dict[Role, CheckpointRef]
    artifacts: list[ArtifactOut] = Field(description="Artifacts of the unlearned model are precisions of the plan.")
    plan: PlanOut
    policy: Policy | dict[str, Any] = Field(
        description="As it was hashed; a policy from an earlier version may have other fields."
    )
    policy_digest: str = Field(description="Fixed before the run; chosen after it if this judges another audit again.")
    parts: list[PartOut] = Field(description="Every evaluation, in the plan's order.")
    judged_again_from: str | None = Field(
        description="The audit whose stored scores it judges again; null for an audit that measured its own."
    )
    judgements: list[str] = Field(description="The ids of audits that judge its stored scores again.")
    created_at: datetime
    finished_at: datetime | None
    links: AuditLinks
