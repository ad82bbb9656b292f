"""A child ends with its parent, however that ends: the parent keeps a pipe open that the child reads to its end."""

import os
import signal
import threading
import time
from typing import NamedTuple

VARIABLE = "LETHE_PARENT_PIPE"
PATIENCE_SECONDS = 20.0


class Pipe(NamedTuple):
    """A pipe that children read; only the parent holds the other end, which the kernel closes even on SIGKILL."""

    read: int
    write: int

    @classmethod
    def open(cls) -> "Pipe":
        """Open the pipe. Neither end is inherited by default; give children `read` through `pass_fds`."""
        return cls(*os.pipe())

    def close(self) -> None:
        """Close both ends, so that the children end."""
        os.close(self.read)
        os.close(self.write)


def follow() -> None:
    """End this process, and then its whole group, when its parent ends; does nothing where no parent asked for it.

    The process must lead a group of its own.
    """
    # Children of this process must not read it too.
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
