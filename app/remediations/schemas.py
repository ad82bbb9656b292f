"""Remediations as requests and responses show them."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.catalog.ladder import DEFAULT_LADDER, DEFAULT_LOSS, LadderStep
from app.catalog.methods import UNLEARNING_METHODS, summaries
from app.catalog.recipes import LOSSES, Hyperparameters, Recipe
from app.checkpoints.schemas import CheckpointRef
from app.database.states import AuditState, EvaluationState, RemediationState
from app.evidence.unlearning import SHOWN, LossPoint, ModuleSaliency, Reading, StopReason
from app.http.request_types import Name, RequestModel
from app.judgement.verdict import Outcome

AUTO = "auto"

_ID = "01987a3c-5a0e-7cc4-a6a5-6a6d0f6b8c11"


class Budget(RequestModel):
    """How many steps of the ladder an `auto` remediation may take, and for how long."""

    trials: int | None = Field(default=None, ge=1, le=50, description="The most trials to run; null: the whole ladder.")
    minutes: float | None = Field(
        default=None,
        gt=0,
        le=5_000_000,  # a decade
        description="No trial starts later than this after the start of the first one. A trial that is running "
        "finishes, and so does the audit of the trial that is returned.",
    )


class NewRemediation(RequestModel):
    """How to unlearn again what the audit's original was made to forget."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"method": "sure", "loss": "npo_gdr", "hyperparameters": {"alpha": 8, "learning_rate": 3e-4}},
                {"method": AUTO, "loss": "ga_gdr", "budget": {"trials": 3, "minutes": 240}},
            ]
        }
    )

    method: str = Field(
        max_length=100,
        description=f"{summaries()}; {AUTO}: the recipes of the service's ladder (`GET /v1/remediations/ladder`), one"
        " after the other, until an audit says `robust`.",
        json_schema_extra={"enum": [*UNLEARNING_METHODS, AUTO]},
        examples=["sure"],
    )
    loss: str | None = Field(
        default=None,
        max_length=100,
        description=f"The loss: {', '.join(f'`{name}`' for name in LOSSES)}; `{DEFAULT_LOSS}` when left out.",
        examples=["npo_gdr"],
    )
    hyperparameters: dict[str, Any] = Field(
        default_factory=dict,
        description="What differs from the method's defaults: "
        + ", ".join(f"`{name}`" for name in Hyperparameters.model_fields)
        + f". With `{AUTO}`, for every recipe that does not set them itself.",
        examples=[{"alpha": 8}],
    )
    name: Name | None = Field(default=None, description="`<audit>: <method> <loss>` when left out.")
    budget: Budget | None = Field(default=None, description=f"With `{AUTO}` only.")


class Ladder(BaseModel):
    """The recipes that `auto` tries."""

    steps: list[LadderStep] = Field(
        description="In the order of the trials; what a step leaves out comes from the request.",
        examples=[[step.model_dump(mode="json") for step in DEFAULT_LADDER]],
    )
    setting: str = Field(default="LETHE_REMEDIATION_LADDER", description="The setting with which to change it.")


class AuditRef(BaseModel):
    """An audit of the new model."""

    id: str = Field(examples=[_ID])
    state: AuditState
    verdict: Outcome | None
    done: int = Field(description="Number of evaluations that are over.")
    total: int


class StoredModel(BaseModel):
    """Where the new model is, or was."""

    uri: str = Field(examples=["s3://models/lethe/01987a3c-5a0e-7cc4-a6a5-6a6d0f6b8c11/9f2feb0f1ef425b2"])
    digest: str = Field(description="The checkpoint's digest; stays when the model is deleted.")
    bytes: int
    deleted_at: datetime | None


class TrialOut(BaseModel):
    """One recipe, trained and judged."""

    id: str = Field(examples=[_ID])
    position: int = Field(description="Its position, counted from 0.")
    recipe: Recipe
    state: EvaluationState
    attempt: int = Field(description="How many times a worker has claimed it.")
    stage: str | None = Field(examples=["train"])
    done: int = Field(description="Progress within the stage, out of `total`; while training, optimiser steps.")
    total: int
    error_code: str | None
    error_detail: str | None
    losses: list[LossPoint] = Field(
        description=f"The loss curve so far; longer ones are thinned to about {SHOWN} evenly spaced points."
    )
    readings: list[Reading] = Field(description="The stop rule's readings.")
    saliency: list[ModuleSaliency] | None = Field(description="SURE's map, largest first.")
    stopped: StopReason | None = Field(description="Why training ended.")
    steps: int | None = Field(description="Optimiser steps in the new model.")
    resumed: int | None = Field(description="How many times training was interrupted and resumed.")
    parameters_total: int | None
    parameters_trained: int | None
    parameters_changed: int | None
    peak_memory: dict[str, int] | None = Field(description="Bytes.")
    checkpoint: CheckpointRef | None
    model: StoredModel | None
    screening: AuditRef | None = Field(
        description="The audit at `full` and at the cheapest precision at which the first audit failed."
    )
    audit: AuditRef | None = Field(description="The audit with the first audit's whole plan and policy.")


class RemediationSummary(BaseModel):
    """A remediation in a list."""

    id: str = Field(examples=[_ID])
    name: str = Field(examples=["release 2026-03: sure npo_gdr"])
    state: RemediationState
    audit: str = Field(description="The audit that led to it.")
    method: str = Field(examples=["sure"])
    loss: str | None = Field(examples=["npo_gdr"])
    verdict: Outcome | None = Field(description="The verdict of the audit of the model that it returns.")
    created_at: datetime
    finished_at: datetime | None


class RemediationLinks(BaseModel):
    """Related resources."""

    self: str = Field(examples=[f"/v1/remediations/{_ID}"])
    events: str
    report: str
    cancel: str
    model: str
    audit: str | None = Field(description="The audit of the model that it returns.")


class RemediationOut(RemediationSummary):
    """A remediation with all its trials."""

    stage: str | None = Field(
        description="What is happening: the worker's stage while it trains, or `audit`.", examples=["train"]
    )
    done: int = Field(description="Progress out of `total`: optimiser steps, or evaluations of the audit.")
    total: int
    budget: Budget
    recipes: list[Recipe] = Field(description="The recipes to try, in order.")
    trials: list[TrialOut]
    chosen: int | None = Field(description="The position of the trial that it returns.")
    sentence: str | None = Field(description="How it ended, in words.")
    error_code: str | None = Field(description="Why there is no new model.")
    started_at: datetime | None
    links: RemediationLinks
