"""Run stages of a build side by side in child processes and pass their progress on.

Our own: a ProcessPoolExecutor cannot end the stages that still run when one fails, or when the build is interrupted
(its `kill_workers` came with Python 3.14).
"""

from __future__ import annotations

import json
import queue
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Final

from app import launch

_ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class StageFailed(RuntimeError):
    """A stage of the build ended with an error; the message has the last lines that it wrote."""


def run_stages(orders: Sequence[dict[str, Any]], progress: Callable[[int, int], None]) -> list[dict[str, Any]]:
    """The results of `orders`, each a process; `progress(done, total)` is called here with the sum over all of them.

    Raises `StageFailed` as soon as one fails; whatever happens, no child is left behind.
    """
    said: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
    results: list[dict[str, Any] | None] = [None] * len(orders)
    steps = [(0, 0)] * len(orders)
    with tempfile.TemporaryDirectory() as scratch:
        errors = [Path(scratch) / f"{index}.txt" for index in range(len(orders))]
        children = [_start(order, path) for order, path in zip(orders, errors, strict=True)]
        try:
            for index, child in enumerate(children):
                threading.Thread(target=_listen, args=(index, child.stdout, said), daemon=True).start()
            running = len(children)
            while running:
                index, message = said.get()
                if message is None:
                    running -= 1
                    if children[index].wait() != 0:
                        tail = errors[index].read_text(encoding="utf-8", errors="replace").strip()[-2000:]
                        raise StageFailed(f"{orders[index]['stage']} of {orders[index]['subject']} failed:\n{tail}")
                elif "result" in message:
                    results[index] = message["result"]
                    steps[index] = (steps[index][1], steps[index][1])
                else:
                    steps[index] = (message["done"], message["total"])
                if all(total for _, total in steps):
                    progress(sum(done for done, _ in steps), sum(total for _, total in steps))
        finally:
            for child in children:
                child.kill()
                child.wait()
    return [result for result in results if result is not None]


def _start(order: dict[str, Any], errors: Path) -> subprocess.Popen[str]:
    with errors.open("wb") as stderr:
        return subprocess.Popen(  # noqa: S603 - our own module, our own interpreter
            launch.command(f"{__package__}.stage", json.dumps(order)),
            env=launch.environment() | _ONE_THREAD,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )


def _listen(index: int, lines: IO[str], said: queue.Queue[tuple[int, dict[str, Any] | None]]) -> None:
    for line in lines:
        if line.startswith("{"):
            said.put((index, json.loads(line)))
    said.put((index, None))
