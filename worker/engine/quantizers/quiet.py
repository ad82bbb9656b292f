"""Keeping libraries from drawing progress bars and printing."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import tqdm


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Without the library's own progress bars."""
    original = tqdm.tqdm.__init__

    def silent(bar: Any, *args: Any, **options: Any) -> None:
        original(bar, *args, **(options | {"disable": True}))

    tqdm.tqdm.__init__ = silent
    try:
        yield
    finally:
        tqdm.tqdm.__init__ = original


@contextlib.contextmanager
def no_output() -> Iterator[None]:
    """Without what a library prints on standard output, where `lethe run` writes its report."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
