"""A child ends with its parent, however that ends: the parent keeps a pipe open that the child reads to its end."""

import os
import signal
import threading
import time
from typing import NamedTuple

VARIABLE = "LETHE_PARENT_PIPE"
PATIENCE_SECONDS = 20.0


class Pipe(NamedTuple):
    """What a child reads, and what only the parent holds: the kernel closes it, SIGKILL or not."""

    read: int
    write: int

    @classmethod
    def open(cls) -> "Pipe":
        """A pipe, neither end of which is inherited by itself; give children `read` by `pass_fds`."""
        return cls(*os.pipe())

    def close(self) -> None:
        """Close both ends: the children end."""
        os.close(self.read)
        os.close(self.write)


def follow() -> None:
    """End this process, and at last its whole group, when its parent ends; nothing where no parent asked for it.

    The process must lead a group of its own.
    """
    # Not for children of this one.
    read = os.environ.pop(VARIABLE, None)
    if read is None:
        return
    os.set_inheritable(int(read), False)
    threading.Thread(target=_wait, args=(int(read),), name="parent", daemon=True).start()


def _wait(read: int) -> None:
    os.read(read, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE_SECONDS)
    os.killpg(os.getpgrp(), signal.SIGKILL)
