"""The service over SQLite and over PostgreSQL, with an empty database for each test that asks for it."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.running_service import empty_database, running_service
from tests.support.servers import fresh_database
from tests.support.service import Service


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service as a server, once per file and database."""
    folder = tmp_path_factory.mktemp("service")
    with ExitStack() as stack:
        url = None
        if request.param == "postgresql":
            url = stack.enter_context(fresh_database(request.getfixturevalue("postgres_url")))
        yield stack.enter_context(running_service(folder, database_url=url))


@pytest.fixture
def service(running: Service) -> Iterator[Service]:
    """The service with an empty database and a key for everything."""
    empty_database()
    running.begin()
    yield running
    running.folder.chmod(0o755)


@pytest.fixture
def models(service: Service) -> Path:
    """The allowed folder."""
    return service.folder
