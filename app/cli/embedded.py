"""The embedded service: API and one worker as children, in one data directory, with nothing else to install."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from app import launch, lifeline
from app.database import engine as db
from app.database import migrate
from app.errors import NotAuthenticated, Unavailable
from app.http import auth
from app.http.scopes import Scope
from app.settings import Settings, settings

RESTARTS = 20
STOP_SECONDS = 15.0


class Service:
    """The running children; `revive_worker` restarts a worker that died."""

    def __init__(self, settings: Settings, key: str, log: Path) -> None:
        self.settings, self.key, self.log = settings, key, log
        self.url = f"http://{settings.host}:{settings.port}"
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._restarts = 0
        self._pipe = lifeline.Pipe.open()

    def start(self, name: str) -> None:
        """Start a child: `serve` or `worker`."""
        with self.log.open("ab") as out:
            self._children[name] = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                launch.command("app.cli", name),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=launch.environment() | {lifeline.VARIABLE: str(self._pipe.read)},
                pass_fds=[self._pipe.read],
            )

    def ready(self, seconds: float = 60.0) -> None:
        """Wait until the API answers.

        Raises:
            Unavailable: it ended, or did not answer in time; the message holds the end of its log.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._children["serve"].poll() is not None:
                break
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/readyz", timeout=2).is_success:
                    return
            time.sleep(0.1)
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        raise Unavailable("api_ended", f"the API did not start; the end of {self.log}:\n{tail}")

    def revive_worker(self) -> str | None:
        """Restart a worker that died; returns what happened, or None. The API's end raises Unavailable."""
        if (code := self._children["serve"].poll()) is not None:
            raise Unavailable("api_ended", f"the API ended with {code}; see {self.log}")
        if (code := self._children["worker"].poll()) is None:
            return None
        self._restarts += 1
        if self._restarts > RESTARTS:
            raise Unavailable("no_worker", f"the worker keeps ending (now with {code}); see {self.log}")
        self.start("worker")
        return f"the worker ended with {code}; started another"

    def stop(self) -> None:
        """End the children: by SIGTERM, then by SIGKILL."""
        for child in self._children.values():
            _signal_group(child, signal.SIGTERM)
        end = time.monotonic() + STOP_SECONDS
        for child in self._children.values():
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(0.1, end - time.monotonic()))
            _signal_group(child, signal.SIGKILL)
            child.wait()
        self._pipe.close()


@contextmanager
def embedded(wanted: Settings) -> Iterator[Service]:
    """Start the service on these settings, with a migrated database and a key; stop what was started at the end.

    The settings are set in this process's environment too, as the children get them.

    Raises:
        Unavailable: the port is taken, or the API did not start.
    """
    wanted.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _in_use(wanted.host, wanted.port):
        raise Unavailable(
            "port_in_use", f"port {wanted.port} on {wanted.host} is taken; choose another with --port or LETHE_PORT"
        )
    os.environ.update(_environment(wanted))
    settings.cache_clear()
    db.engine.cache_clear()
    migrate.upgrade()
    service = Service(wanted, dev_key(wanted.key_file), wanted.data_dir / "lethe.log")
    try:
        service.start("serve")
        service.start("worker")
        service.ready()
        yield service
    finally:
        service.stop()


def dev_key(file: Path) -> str:
    """The administrator's key of an embedded service: the one in the file, or a new one, readable by its owner only."""
    if file.exists():
        secret = file.read_text().strip()
        with suppress(NotAuthenticated), db.reading() as session:
            auth.authenticate(session, secret)
            return secret
    with db.transaction() as session:
        _, secret = auth.create_key(session, "lethe dev", [Scope.ADMIN])
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_text(secret + "\n")
    return secret


def free_port(host: str = "127.0.0.1") -> int:
    """A port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _in_use(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def _signal_group(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # Each child leads its own group: the worker's pool processes end with it.
    with suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _environment(wanted: Settings) -> dict[str, str]:
    """The settings as environment variables: those that were set or that follow from the data directory."""
    found = {name: value for name, value in wanted.model_dump(mode="json").items() if value not in (None, "")}
    found["data_dir"] = str(wanted.data_dir.resolve())
    found["roots"] = os.pathsep.join(str(root.resolve()) for root in wanted.roots)
    texts = {name: json.dumps(value) if isinstance(value, list | dict) else str(value) for name, value in found.items()}
    return {f"LETHE_{name.upper()}": text for name, text in texts.items()}
