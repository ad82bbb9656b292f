"""The worker's processes: what each process of the pool may use, and how they end without keeping their leases.

SIGTERM or SIGINT reaches the main process, which tells the pool's processes (SOFT_STOP); each stops its evaluation,
gives the lease back and ends within about `settings().stop_seconds`.
"""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from billiard import current_process

from app.settings import settings
from worker.loop.runner import SHUTDOWN

MARGIN_SECONDS = 3.0

SOFT_STOP = signal.SIGURG
"""From the main process to the pool's: give the lease back. billiard handles SIGTERM and most other signals itself; a
process that does not handle this one yet ignores it."""

_pool: Any = None


def on_ready(sender: Any, **kwargs: Any) -> None:
    """In the main process, once it listens."""
    global _pool
    _pool = sender.pool
    # On SIGHUP Celery would restart itself and outlive the terminal, or the `lethe dev`, that it belongs to.
    signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))


def on_shutting_down(**kwargs: Any) -> None:
    """In the main process, when it is asked to end."""
    for process in list(_pool._pool._pool) if _pool is not None else ():
        try:
            os.kill(process.pid, SOFT_STOP)
        except ProcessLookupError:
            continue


def on_process_init(**kwargs: Any) -> None:
    """In a new process of the pool, before torch is imported."""
    index = getattr(current_process(), "index", 0)
    count = settings().worker_concurrency
    gpus = visible_gpus() if count > 1 and settings().device != "cpu" else []
    if len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
    threads = settings().torch_threads or (max(1, (os.cpu_count() or 1) // count) if count > 1 else None)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    _listen()


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; found without torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip()]
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return []
    query = [smi, "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    return found.stdout.split()


@contextmanager
def ending_softly() -> Iterator[None]:
    """Treat SIGTERM as a soft stop too, because whoever ends a process group sends it to all of its processes at once.

    Outside of this, SIGTERM ends a process of the pool at once, as billiard does.
    """
    before = signal.signal(signal.SIGTERM, _noop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _listen() -> None:
    # A Python signal handler waits for the main thread, which may be in a long step of the engine; the wakeup file
    # descriptor is written to at once.
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(SOFT_STOP, _noop)

    def wait() -> None:
        while not {signal.SIGTERM, SOFT_STOP} & set(os.read(read, 64)):
            pass
        SHUTDOWN.set()
        time.sleep(settings().stop_seconds + MARGIN_SECONDS)
        os._exit(os.EX_OK)

    threading.Thread(target=wait, name="soft-stop", daemon=True).start()


def _noop(number: int, frame: Any) -> None:
    pass
