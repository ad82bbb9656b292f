"""Forget sets as requests and responses show them."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from app.catalog.metrics import METRICS, MetricId
from app.database.models import ForgetSet
from app.http.request_types import Name, Reference, RequestModel


class NewForgetSet(RequestModel):
    """A directory to read a forget set from; its files are copied."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"uri": "/data/muse-news", "name": "MUSE-News"}]})

    uri: Reference = Field(description="An absolute path or a file:// URI below one of the service's allowed folders.")
    name: Name | None = Field(default=None, description="The bundle's own name, or the folder's, when left out.")


class MetricAvailability(BaseModel):
    """Whether one metric can be measured on a forget set."""

    metric: MetricId
    available: bool
    reason: str | None = Field(
        default=None, description="Why it cannot be measured.", examples=["verbmem/forget.json is missing or empty"]
    )
    derived: str | None = Field(default=None, description="How its items were made, if the bundle did not bring them.")


class ForgetSetOut(BaseModel):
    """A forget set, without its content."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "01987a3c-5a0e-7cc4-a6a5-6a6d0f6b8c11",
                    "name": "MUSE-News",
                    "source": "upload",
                    "digest": "sha256:5f0c6f1c0d7a2f0a7e7e0a6e8a7f6f9f1d2e3c4b5a69788796a5b4c3d2e1f001",
                    "counts": {"knowmem/forget_qa": 100, "knowmem/forget_qa_icl": 10},
                    "duplicates": {},
                    "metrics": [
                        {"metric": "knowmem_forget", "available": True},
                        {
                            "metric": "verbmem",
                            "available": False,
                            "reason": "verbmem/forget.json is missing or empty",
                        },
                    ],
                    "ignored": ["raw/holdout.json", "raw/holdout.txt"],
                    "auc_retrained": None,
                    "created_at": "2026-03-02T09:30:00Z",
                    "purged_at": None,
                }
            ]
        }
    )

    id: str
    name: str
    source: str = Field(description="`upload`, or the directory that it was read from.")
    digest: str = Field(description="SHA-256 over its content, however it is formatted.")
    counts: dict[str, int] = Field(description="Items per file.")
    duplicates: dict[str, list[int]] = Field(
        description="File -> indices (from 0) of the items that repeat others, which no metric counts.",
        examples=[{"verbmem/forget": [3, 7]}],
    )
    metrics: list[MetricAvailability]
    ignored: list[str] = Field(description="Files that were sent but are not used: others that MUSE's folders hold.")
    auc_retrained: float | None = Field(description="The AUC of a retrained model, where the bundle gives it.")
    created_at: datetime
    purged_at: datetime | None = Field(description="When its content was deleted.")

    @classmethod
    def of(cls, row: ForgetSet) -> "ForgetSetOut":
        """The response for a table's row."""
        unavailable, derived = row.info.get("unavailable", {}), row.info.get("derived", {})
        return cls(
            id=row.id,
            name=row.name,
            source=row.source,
            digest=row.digest,
            counts=row.info["counts"],
            duplicates=row.info.get("duplicates", {}),
            metrics=[
                MetricAvailability(
                    metric=metric,
                    available=metric not in unavailable,
                    reason=unavailable.get(metric),
                    derived=derived.get(metric),
                )
                for metric in METRICS
            ],
            ignored=row.info.get("ignored", []),
            auc_retrained=row.info.get("auc_retrained"),
            created_at=row.created_at,
            purged_at=row.purged_at,
        )
