"""What a message can ask for."""

from app.queue import DRAIN
from worker import processes, runner
from worker.celery_app import app


@app.task(name=DRAIN)  # type: ignore[untyped-decorator]
def drain() -> None:
    """Run evaluations until none is left."""
    with processes.ending_softly():
        runner.drain()
