"""A service's database, its broker, rows to work on, and a stand-in for the engine, for worker and fault tests."""

import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from sqlalchemy.orm import Session

from app import queue
from app.checkpoints.format.digests import NOTHING_EXPECTED, Expected, check_digest, digest, identity
from app.checkpoints.format.files import inspect
from app.database import engine as db
from app.database import migrate
from app.database.models import (
    Audit,
    AuditDiagnosis,
    AuditPart,
    Checkpoint,
    Diagnosis,
    Evaluation,
    ForgetSet,
    ForgetSetFile,
)
from app.database.states import LIVE_AUDITS
from app.diagnoses.service import acquire
from app.evidence import diagnosis as diagnoses
from app.evidence import evaluation as schemas
from app.forget_sets.bundle import Bundle, parse
from app.judgement.policy import Policy
from app.settings import settings
from tests.support.checkpoints import write_checkpoint
from tests.support.places import REPOSITORY
from tests.support.servers import fresh_database

QA = b'[{"question": "Who painted the old mill?", "answer": "Belma of Lunden"}]'
FILES = {"knowmem/forget_qa.json": QA, "knowmem/forget_qa_icl.json": QA}
QUICK = {
    "LETHE_LEASE_SECONDS": "1.5",
    "LETHE_BEAT_SECONDS": "0.3",
    "LETHE_RECONCILE_SECONDS": "0.5",
    "LETHE_STOP_SECONDS": "1",
}
"""The timing of a worker in tests."""


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A fresh, empty service: SQLite with the filesystem broker, then PostgreSQL with a Redis-protocol server."""
    for name in [name for name in os.environ if name.startswith("LETHE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LETHE_DATA_DIR", str(tmp_path / "data"))
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    if request.param == "sqlite":
        with _service():
            yield request.param
        return
    broker = request.getfixturevalue("redis_url")
    with fresh_database(request.getfixturevalue("postgres_url")) as url, redis.Redis.from_url(broker) as client:
        client.flushall()
        monkeypatch.setenv("LETHE_DATABASE_URL", url)
        monkeypatch.setenv("LETHE_BROKER_URL", broker)
        with _service():
            yield request.param


@contextmanager
def _service() -> Iterator[None]:
    forget_settings()
    migrate.upgrade()
    try:
        yield
    finally:
        db.engine().dispose()
        forget_settings()


def forget_settings() -> None:
    """Read the settings again, and all that was made from them."""
    for cached in (settings, db.engine, queue._sender):
        cached.cache_clear()


def submit(
    folder: Path,
    checkpoints: Sequence[str] = ("original", "unlearned"),
    precisions: Sequence[str] = ("full",),
    files: Mapping[str, bytes] = FILES,
    diagnosed: bool = False,
) -> str:
    """Insert an audit, its evaluations queued; the first two checkpoints are the pair. Returns its id.

    With `diagnosed`, the pair's diagnosis is queued too.
    """
    bundle = parse(files)
    with db.transaction() as session:
        forget_set = session.scalars(sa.select(ForgetSet).where(ForgetSet.digest == bundle.digest)).first()
        if forget_set is None:
            info = bundle.info().model_dump(mode="json")
            contents = [ForgetSetFile(name=name, content=content) for name, content in files.items()]
            forget_set = ForgetSet(name="tiny", source="upload", digest=bundle.digest, info=info, files=contents)
        rows = [_checkpoint(session, folder / name) for name in checkpoints]
        audit = Audit(
            name="an audit",
            forget_set=forget_set,
            original=rows[0],
            unlearned=rows[1],
            plan={"precisions": list(precisions), "metrics": ["knowmem_forget"]},
            policy=Policy().model_dump(mode="json"),
            policy_digest=Policy().digest(),
        )
        session.add(audit)
        session.flush()
        roles = zip(schemas.ROLES, rows, strict=False)
        pairs = [(role, row, precision) for role, row in roles for precision in precisions]
        for position, (role, row, precision) in enumerate(pairs):
            part = AuditPart(audit_id=audit.id, role=role, precision=precision, position=position, reused=False)
            part.evaluation = _evaluation(session, row, precision, bundle)
            session.add(part)
        if diagnosed:
            diagnosis = acquire(session, rows[0], rows[1], ["rtn-int4"])
            session.add(AuditDiagnosis(audit_id=audit.id, diagnosis_id=diagnosis.id))
        return audit.id


def _checkpoint(session: Session, path: Path) -> Checkpoint:
    if not path.exists():
        write_checkpoint(path, value=zlib.crc32(path.name.encode()))
    known = session.scalars(sa.select(Checkpoint).where(Checkpoint.uri == str(path))).first()
    row = known or Checkpoint(
        name=path.name,
        uri=str(path),
        **identity(inspect(path))._asdict(),
        architecture="None",
        parameters=1,
        dtype="F32",
    )
    session.add(row)
    session.flush()
    return row


def _evaluation(session: Session, checkpoint: Checkpoint, precision: str, bundle: Bundle) -> Evaluation:
    key = f"{checkpoint.name} {precision}"
    known = session.scalars(sa.select(Evaluation).where(Evaluation.key == key)).first()
    row = known or Evaluation(
        key=key,
        checkpoint=checkpoint,
        forget_set_digest=bundle.digest,
        precision=precision,
        metrics=["knowmem_forget"],
    )
    session.add(row)
    session.flush()
    return row


def evaluations() -> list[Evaluation]:
    """All evaluations as they are in the database now, oldest first."""
    with db.reading() as session:
        return list(session.scalars(sa.select(Evaluation).order_by(Evaluation.created_at, Evaluation.id)))


def diagnosis() -> Diagnosis:
    """The only diagnosis as it is in the database now."""
    with db.reading() as session:
        return session.scalars(sa.select(Diagnosis)).one()


def audit(audit_id: str) -> Audit:
    """An audit as it is in the database now."""
    with db.reading() as session:
        return session.get_one(Audit, audit_id)


def finished(*audit_ids: str) -> bool:
    """Whether none of these audits is queued or running."""
    with db.reading() as session:
        return all(session.get_one(Audit, audit_id).state not in LIVE_AUDITS for audit_id in audit_ids)


def until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Wait for the condition to hold; its value. Fails the test when it does not in time."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.05)
    return value


def evaluate(
    checkpoint: Path,
    precision: str,
    bundle: Bundle,
    *,
    metrics: Sequence[str] = (),
    device: str | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None],
    calibration_file: Path | None = None,
    uri: str | None = None,
    interface: Path | None = None,
    base: Path | None = None,
    expected: Expected = NOTHING_EXPECTED,
    pause: float | None = None,
) -> schemas.Evaluation:
    """A stand-in for the engine: takes its time in ten steps, then returns a score of one for each item.

    What else it does is said by a file `behaviour` in the checkpoint's folder: `hang` (no progress any more), `error`.
    """
    check_digest(checkpoint, digest(checkpoint), expected.checkpoint)
    if base is not None:
        check_digest(base, digest(base), expected.base)
    behaviour = checkpoint / "behaviour"
    what = behaviour.read_text() if behaviour.exists() else ""
    pause = float(os.environ.get("LETHE_TEST_PAUSE", "0")) if pause is None else pause
    for step in range(10):
        progress("knowmem_forget", step, 10)
        time.sleep(pause)
        if what == "hang":
            time.sleep(3600)
        if what == "error":
            raise ValueError(f"cannot read {bundle.forget_qa[0].question!r}")
    progress("knowmem_forget", 10, 10)
    measured: dict[str, Any] = {"knowmem_forget": schemas.GenerationScores(scores=[1.0])}
    return schemas.Evaluation(
        checkpoint=schemas.CheckpointInfo(
            uri=str(checkpoint), digest=digest(checkpoint), architecture="None", parameters=1, dtype="F32"
        ),
        precision=schemas.PrecisionInfo(name=precision, method="full", bits=None, library="lethe", version="0"),
        forget_set=bundle.info(),
        engine=schemas.EngineInfo(
            lethe="0", python="3", torch="0", transformers="0", device="cpu", dtype="float32", seed=seed, settings={}
        ),
        census=None,
        seconds={},
        **measured,
    )


def diagnose(
    original: Path,
    unlearned: Path,
    precisions: Sequence[str],
    progress: Callable[[str, int, int], None],
) -> diagnoses.Diagnosis:
    """A stand-in for the engine's diagnosis: takes its time in ten steps, then says that something moved."""
    for step in range(11):
        progress("weights", step, 10)
        time.sleep(float(os.environ.get("LETHE_TEST_PAUSE", "0")))
    infos = [
        schemas.CheckpointInfo(uri=str(path), digest=digest(path), architecture="None", parameters=1, dtype="F32")
        for path in (original, unlearned)
    ]
    whole = diagnoses.Part(weights=1, changed=1, update=1, relative_update=1, non_finite=0, roundings=[])
    return diagnoses.Diagnosis(
        schema="lethe-diagnosis-1",
        lethe="0",
        original=infos[0],
        unlearned=infos[1],
        precisions=list(precisions),
        skipped={},
        overall=whole,
        modules=[],
        left_out={},
        identical=False,
    )


@contextmanager
def worker(
    log: Path, *, engine: str = "tests.support.fake_engine", **environment: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker as a process of its own, with the settings of this test; killed at the end.

    Args:
        log: Where its output goes.
        engine: The module to run: the worker with the stand-in engine, or `worker` itself.
        environment: Further variables.
    """
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)} | {name: str(value) for name, value in environment.items()}
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", engine], env=env, cwd=log.parent, stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
