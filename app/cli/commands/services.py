"""`lethe dev`, `serve`, `worker`, `run`, `diagnose` and `unlearn`: starting things."""

import importlib.util
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app import launch, lifeline
from app.cli import exit_codes
from app.errors import InvalidRequest
from app.settings import settings

if TYPE_CHECKING:
    from app.cli.embedded import Service

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def dev(
    data_dir: Annotated[Path | None, typer.Option(help="Database, broker and key. Default: LETHE_DATA_DIR.")] = None,
    root: Annotated[
        list[Path] | None,
        typer.Option(
            help="A directory that checkpoints and forget sets may be read from; repeatable. "
            "Default: LETHE_ROOTS, or the current directory."
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.", min=1, max=65535)] = None,
) -> None:
    """Start the whole service here: API, one worker, SQLite and the filesystem broker in one data directory."""
    from app.cli.embedded import embedded
    from app.remediations.recipes import ladder

    given = {"data_dir": data_dir, "host": host, "port": port}
    wanted = settings().model_copy(update={name: value for name, value in given.items() if value is not None})
    if root or not wanted.roots:
        wanted = wanted.model_copy(update={"roots": [path.resolve() for path in root or [Path.cwd()]]})
    ladder()
    # Until it is up, a SIGTERM must stop what was started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(exit_codes.SERVICE))
    with embedded(wanted) as service:
        exit_codes.out.print(f"Lethe is up:  {service.url}  (API description: {service.url}/docs)")
        exit_codes.out.print(f"API key:      {service.key}")
        exit_codes.out.print(
            f"              also in {wanted.key_file}; `lethe` finds it with LETHE_DATA_DIR={wanted.data_dir}"
        )
        exit_codes.out.print(f"Reads from:   {', '.join(str(path) for path in wanted.roots)}")
        exit_codes.out.print(f"Log:          {service.log}")
        exit_codes.out.print("Stop with Ctrl-C.", style="dim")
        exit_codes.out.file.flush()
        _until_interrupted(service)


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: LETHE_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. Default: LETHE_PORT.", min=1, max=65535)] = None,
    upgrade: Annotated[bool, typer.Option(help="Bring the database's schema up to date first.")] = True,
) -> None:
    """Start the API alone; workers are started with `lethe worker` on the same database and broker."""
    import uvicorn

    from app.database import migrate

    lifeline.follow()
    if upgrade:
        migrate.upgrade()
    found = settings()
    uvicorn.run(
        "app.main:create_app",
        factory=True,
        host=host or found.host,
        port=port or found.port,
        log_config=None,
        access_log=False,
        # An open event stream would delay the shutdown for as long as its audit runs.
        timeout_graceful_shutdown=5,
    )


def worker(context: typer.Context) -> None:
    """Start a worker (`lethe worker --help` lists its options)."""
    _hand_over("worker.__main__", context.args)


def run(context: typer.Context) -> None:
    """Audit a pair right here, without a service (`lethe run --help` lists its options)."""
    _hand_over("worker.commands.run", context.args)


def precisions(context: typer.Context) -> None:
    """List the precisions, and which of them this machine can apply (`lethe precisions --help`)."""
    _become("worker.commands.precisions", context.args)


def diagnose(context: typer.Context) -> None:
    """Show where a pair's update lives, without a service (`lethe diagnose --help` lists its options)."""
    _hand_over("worker.commands.diagnose", context.args)


def unlearn(context: typer.Context) -> None:
    """Make a model forget right here, without a service (`lethe unlearn --help` lists its options)."""
    _hand_over("worker.commands.unlearn", context.args)


def _until_interrupted(service: "Service") -> None:
    """Keep the worker alive until Ctrl-C or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(1.0):
        if happened := service.revive_worker():
            exit_codes.err.print(happened, style="yellow")


def _hand_over(module: str, args: list[str]) -> None:
    """Replace this process by the worker's program, because this package does not import torch."""
    if importlib.util.find_spec("torch") is None:
        aside = f" (PYTHONPATH's {os.pathsep.join(launch.left_out)!r} is ignored)" if launch.left_out else ""
        raise InvalidRequest(
            "invalid_request", f"the worker's libraries are not installed{aside}: pip install 'lethe-audit[worker]'"
        )
    _become(module, args)


def _become(module: str, args: list[str]) -> None:
    sys.stdout.flush()
    line = launch.command(module, *args)
    os.execve(line[0], line, launch.environment())  # noqa: S606 - our own interpreter and module
