"""`lethe dev` and its processes: none outlives it, however it ends."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from app.cli.embedded import free_port
from tests.support.commands import LETHE
from tests.support.worker_service import until

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found by Linux's /proc")


def processes(data: Path) -> list[int]:
    """The processes that work in this data directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"LETHE_DATA_DIR={data}".encode() in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
    return found


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "data"
    yield path
    for left in processes(path):
        with suppress(ProcessLookupError):
            os.kill(left, signal.SIGKILL)


@pytest.fixture
def dev(data: Path) -> Iterator[subprocess.Popen[bytes]]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("LETHE_")}
    env |= {"LETHE_DATA_DIR": str(data), "LETHE_ROOTS": str(data.parent), "LETHE_PORT": str(free_port())}
    with subprocess.Popen([*LETHE, "dev"], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        yield process
        process.kill()


def is_up(dev: subprocess.Popen[bytes], data: Path) -> bool:
    assert dev.stdout is not None
    return any(b"Stop with Ctrl-C" in line for line in dev.stdout)


def has_started_children(dev: subprocess.Popen[bytes], data: Path) -> bool:
    until(lambda: len(processes(data)) >= 3)
    return True


@pytest.mark.parametrize("moment", [is_up, has_started_children])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_it(
    dev: subprocess.Popen[bytes],
    data: Path,
    number: signal.Signals,
    moment: Callable[[subprocess.Popen[bytes], Path], bool],
) -> None:
    assert moment(dev, data)
    dev.send_signal(number)
    dev.wait(30)
    # SIGTERM: it waited for them, but for what a worker that was still starting had just started itself. SIGKILL: they
    # notice by themselves.
    waited = number is signal.SIGTERM and moment is is_up
    until(lambda: not processes(data), seconds=1 if waited else 15)
