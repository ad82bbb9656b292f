"""Diagnoses as requests and responses show them."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from app.checkpoints.schemas import CheckpointRef
from app.database.states import EvaluationState
from app.evidence.diagnosis import DEFAULT_DIAGNOSED, Diagnosis
from app.http.request_types import Reference, RequestModel


class NewDiagnosis(RequestModel):
    """The pair to compare. Checkpoints are named by id, digest or path (which registers them on the way)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "original": "/models/llama-2-7b-news",
                    "unlearned": "/models/llama-2-7b-news-npo",
                    "precisions": ["rtn-int8", "rtn-int4", "bnb-nf4"],
                }
            ]
        }
    )

    original: Reference = Field(description="The checkpoint before unlearning.")
    unlearned: Reference = Field(description="The checkpoint that claims to have forgotten.")
    precisions: list[str] = Field(
        default=list(DEFAULT_DIAGNOSED),
        min_length=1,
        max_length=100,
        description="RTN precisions, `bnb-nf4` and `bnb-fp4`; duplicates are dropped. One whose groups do not divide "
        "the model's columns is left out, and the result says so.",
        examples=[list(DEFAULT_DIAGNOSED)],
    )


class DiagnosisLinks(BaseModel):
    """Related resources."""

    self: str = Field(examples=["/v1/diagnoses/01987a3c-5a0e-7cc4-a6a5-6a6d0f6b8c11"])


class DiagnosisOut(BaseModel):
    """A diagnosis, with its result once it has succeeded."""

    id: str = Field(examples=["01987a3c-5a0e-7cc4-a6a5-6a6d0f6b8c11"])
    state: EvaluationState
    original: CheckpointRef
    unlearned: CheckpointRef
    precisions: list[str] = Field(examples=[list(DEFAULT_DIAGNOSED)])
    attempt: int = Field(description="How many times a worker has claimed it.", examples=[1])
    stage: str | None = Field(description="What the worker is doing.", examples=["weights"])
    done: int = Field(description="Progress within the stage, out of `total`.", examples=[212])
    total: int = Field(examples=[1024])
    error_code: str | None
    error_detail: str | None
    result: Diagnosis | None
    created_at: datetime
    finished_at: datetime | None
    links: DiagnosisLinks
