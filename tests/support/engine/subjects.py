"""Models as the metrics take them."""

from pathlib import Path

from worker.engine.checkpoint import open_checkpoint
from worker.engine.muse.subject import Subject


def quiet(stage: str, done: int, total: int) -> None:
    """A progress callback that does nothing."""


def subject(path: Path, budget: int = 2000) -> Subject:
    opened = open_checkpoint(path)
    return Subject(opened.model, opened.tokenizer, budget)
