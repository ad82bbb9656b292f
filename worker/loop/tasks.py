"""The tasks that a message can start."""

from app.queue import DRAIN
from worker.loop import processes, runner
from worker.loop.celery_app import app


@app.task(name=DRAIN)  # type: ignore[untyped-decorator]
def drain() -> None:
    """Run evaluations until none is left."""
    with processes.ending_softly():
        runner.drain()
