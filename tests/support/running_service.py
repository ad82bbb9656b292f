"""The service on a loopback port, in this process."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
import uvicorn

from app.database import engine as db
from app.database import migrate
from app.main import create_app
from tests.support.servers import free_port
from tests.support.service import Service
from tests.support.worker_service import forget_settings

LIMIT = 8 * 2**20


@contextmanager
def running_service(folder: Path, *, roots: Path | None = None, database_url: str | None = None) -> Iterator[Service]:
    """The service as a server, its data in a folder; it reads from `models` there, or from below `roots`."""
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("LETHE_")]:
            environment.delenv(name)
        environment.setenv("LETHE_DATA_DIR", str(folder / "data"))
        environment.setenv("LETHE_ROOTS", str(roots or folder / "models"))
        environment.setenv("LETHE_MAX_BODY_BYTES", str(LIMIT))
        if database_url is not None:
            environment.setenv("LETHE_DATABASE_URL", database_url)
        (folder / "models").mkdir()
        forget_settings()
        migrate.upgrade()
        with _serving() as base_url, Service(base_url, folder / "models") as service:
            yield service
        db.engine().dispose()
    forget_settings()


def empty_database() -> None:
    """Delete every row."""
    with db.transaction() as session:
        for table in reversed(db.Base.metadata.sorted_tables):
            session.execute(sa.delete(table))


@contextmanager
def _serving() -> Iterator[str]:
    port = free_port()
    config = uvicorn.Config(create_app(), host="127.0.0.1", port=port, log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        assert time.monotonic() < end, "the server did not start in time"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
