"""Diagnoses over HTTP."""

from fastapi import APIRouter, Response

from app import queue
from app.checkpoints.roles import locate, open_all, register
from app.checkpoints.schemas import CheckpointRef
from app.database.engine import reading, transaction
from app.database.models import Checkpoint
from app.database.models import Diagnosis as DiagnosisRow
from app.database.states import DONE_EVALUATIONS
from app.diagnoses import service
from app.diagnoses.schemas import DiagnosisLinks, DiagnosisOut, NewDiagnosis
from app.evidence.diagnosis import Diagnosis, check_diagnosable
from app.http.auth import CanRead, CanWrite
from app.http.problems import CHECKPOINT, WITH_BODY, look_again, problems
from app.http.request_types import Id

router = APIRouter(tags=["Diagnoses"])
RETRY_SECONDS = 2

_HEADERS = {
    "Location": {"description": "The diagnosis.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds to wait before polling.", "schema": {"type": "integer"}},
}


@router.post(
    "/v1/diagnoses",
    status_code=202,
    responses=problems(*WITH_BODY, *CHECKPOINT, "unknown_precision", "precision_unavailable", "pair_mismatch")
    | {
        200: {"model": DiagnosisOut, "description": "It exists already, with its result.", "headers": _HEADERS},
        202: {"description": "Accepted.", "headers": _HEADERS},
    },
)
def create_diagnosis(body: NewDiagnosis, key: CanWrite, response: Response) -> DiagnosisOut:
    """Show from the weights alone where a pair's update lives and what rounding does to it.

    It needs no forget set and no forward pass, and runs before any waiting evaluation. It explains and never decides a
    verdict. The same pair at the same precisions is the same diagnosis.
    """
    precisions = check_diagnosable(body.precisions)
    with reading() as session:
        located = locate(session, body)
    sources = open_all(located)
    with transaction() as session:
        rows = register(session, sources)
        diagnosis_id = service.acquire(session, rows["original"], rows["unlearned"], precisions).id
    queue.ring()
    found = read_diagnosis(diagnosis_id, key, response)
    response.status_code = 202 if found.result is None else 200
    response.headers["Location"] = found.links.self
    return found


@router.get("/v1/diagnoses/{diagnosis_id}", responses=problems("not_found", "invalid_request"))
def read_diagnosis(diagnosis_id: Id, key: CanRead, response: Response) -> DiagnosisOut:
    """Read one diagnosis, with its progress or its result."""
    with reading() as session:
        row = service.get(session, diagnosis_id)
    if row.state not in DONE_EVALUATIONS:
        look_again(response, RETRY_SECONDS)
    return _view(row)


def _view(row: DiagnosisRow) -> DiagnosisOut:
    return DiagnosisOut(
        id=row.id,
        state=row.state,
        original=_checkpoint(row.original),
        unlearned=_checkpoint(row.unlearned),
        precisions=row.precisions,
        attempt=row.attempt,
        stage=row.stage,
        done=row.done,
        total=row.total,
        error_code=row.error_code,
        error_detail=row.error_detail,
        result=None if row.result is None else Diagnosis.model_validate(row.result),
        created_at=row.created_at,
        finished_at=row.finished_at,
        links=DiagnosisLinks(self=f"/v1/diagnoses/{row.id}"),
    )


def _checkpoint(row: Checkpoint) -> CheckpointRef:
    return CheckpointRef(id=row.id, name=row.name, uri=row.uri, digest=row.digest)
