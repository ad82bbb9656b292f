"""A service with workers: its database, its broker, rows to work on, and workers as processes of their own."""

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
from app.checkpoints.format.digests import identity
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


@contextmanager
def worker(
    log: Path, *, engine: str = "tests.support.stand_ins.worker", **environment: Any
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
