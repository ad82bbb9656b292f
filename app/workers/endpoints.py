"""`GET /v1/precisions`: what can be requested, and whether the workers can apply it."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.catalog.plans import PLANS
from app.catalog.precisions import PRECISIONS
from app.catalog.quantizers import SOURCES
from app.database.engine import reading
from app.evidence import artifacts
from app.http.auth import CanRead
from app.http.problems import problems
from app.workers import service as workers

router = APIRouter(tags=["Audits"])


class PrecisionOut(BaseModel):
    """One way to hold weights while a model is evaluated."""

    name: str = Field(examples=["gptq-int4"])
    method: str = Field(examples=["gptq"])
    bits: int | None = Field(description="Bits per quantized weight; null for full precision.")
    granularity: str | None = Field(description="channel, tensor, or group; null for full precision.")
    group_size: int | None
    calibrations: list[str] = Field(
        description="What may follow the name after an @: the texts that the method reads; the first is the default."
    )
    library: str = Field(examples=["llmcompressor"])
    available: bool | None = Field(description="Whether a live worker can apply it; null when no worker is known.")
    reason: str | None = Field(description="Why no worker can.")


class FormatOut(BaseModel):
    """A format of artifacts, which are already quantized checkpoints."""

    name: str = Field(description="Its quant_method.", examples=["gptq"])
    library: str = Field(description="The library that opens it.", examples=["gptqmodel"])
    available: bool | None = Field(description="Whether a live worker can open it; null when no worker is known.")
    reason: str | None = Field(description="Why no worker can.")


class WorkerOut(BaseModel):
    """A worker, as it last reported."""

    id: str
    host: str
    lethe: str = Field(description="Its version of Lethe.")
    libraries: dict[str, str] = Field(examples=[{"torch": "2.13.0", "llmcompressor": "0.14.0.1"}])
    unavailable: dict[str, str] = Field(description="Precision -> why this worker cannot apply it.")


class Capabilities(BaseModel):
    """Precisions, named plans, and the workers."""

    items: list[PrecisionOut]
    artifacts: list[FormatOut] = Field(description="What an audit's artifacts may be quantized by.")
    plans: dict[str, list[str]] = Field(examples=[{"quick": ["full", "rtn-int4"]}])
    workers: list[WorkerOut]


@router.get("/v1/precisions", responses=problems())
def list_precisions(key: CanRead) -> Capabilities:
    """List the precisions that a plan can name, and whether a live worker can apply them."""
    with reading() as session:
        found = list(workers.live(session))
        reasons = {name: workers.reason(found, name) for name in (*PRECISIONS, *artifacts.LIBRARIES)}
        shown = [
            WorkerOut(
                id=row.id,
                host=row.host,
                lethe=row.lethe,
                libraries=row.libraries,
                unavailable={name: why for name, why in row.precisions.items() if why is not None},
            )
            for row in found
        ]
    items = [
        PrecisionOut(
            name=name,
            method=precision.method,
            bits=precision.bits,
            granularity=precision.granularity,
            group_size=precision.group_size,
            calibrations=list(SOURCES) if precision.calibration else [],
            library=precision.requires or "lethe",
            available=reasons[name] is None if found else None,
            reason=reasons[name],
        )
        for name, precision in PRECISIONS.items()
    ]
    formats = [
        FormatOut(
            name=method,
            library=artifacts.LIBRARIES[format_precision][0],
            available=reasons[format_precision] is None if found else None,
            reason=reasons[format_precision],
        )
        for method, format_precision in artifacts.FORMAT_PRECISIONS.items()
    ]
    return Capabilities(
        items=items, artifacts=formats, plans={name: list(members) for name, members in PLANS.items()}, workers=shown
    )
