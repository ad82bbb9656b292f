"""`lethe worker`: claims evaluations and does them, until it is told to stop."""

from typing import Annotated

import typer

from app import lifeline
from app.cli import exit_codes
from app.database import migrate

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command("lethe worker")
def worker(
    concurrency: Annotated[
        int | None, typer.Option(help="Evaluations at once: one per GPU. Default: LETHE_WORKER_CONCURRENCY.", min=1)
    ] = None,
    loglevel: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING, ERROR")] = "INFO",
) -> None:
    """Start a worker on the database and broker of the settings. On SIGTERM it gives back what it was working on."""
    from worker.loop.celery_app import run_worker

    lifeline.follow()
    migrate.upgrade()
    raise typer.Exit(run_worker(concurrency=concurrency, loglevel=loglevel.upper()))


def main() -> None:
    """`lethe worker`, to its end."""
    exit_codes.run(app, "lethe worker")


if __name__ == "__main__":
    main()
