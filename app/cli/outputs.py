"""Standard output and error of a process whose exit code must not depend on who reads them."""

import io
import os
import sys
from contextlib import suppress
from typing import Any


class _Outliving(io.FileIO):
    """A stream that discards what is written once its reader has gone."""

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except BrokenPipeError:
            _close_off(self.fileno())
            return memoryview(data).nbytes


def outlive_readers() -> None:
    """From now on `lethe … | head -1` exits with the code that `lethe …` exits with.

    Otherwise the first line that nobody reads ends the process: typer exits with 1, which would say that a model failed
    its audit, and the interpreter's last flush with 120. Streams that were closed before the start discard everything.
    """
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            _close_off(descriptor)
            setattr(sys, name, io.TextIOWrapper(io.FileIO(descriptor, "w", closefd=False), encoding="utf-8"))
            continue
        with suppress(OSError):
            stream.flush()
        raw = _Outliving(stream.fileno(), "w", closefd=False)
        # As the interpreter does: with PYTHONUNBUFFERED there is no buffer at all.
        buffer: Any = raw if stream.write_through else io.BufferedWriter(raw)
        text = io.TextIOWrapper(
            buffer,
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, text)


def _close_off(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
