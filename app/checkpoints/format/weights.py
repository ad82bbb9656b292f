"""A checkpoint's tensors, hashed while they are read: the digest is over the bytes that were read.

Nothing here trusts a name, a size or a time. A reader gets a tensor's bytes in memory of its own, and the SHA-256 of
exactly those bytes is kept; the checkpoint's digest is computed from it afterwards (`app.checkpoints.format.digests`).
So a file that is replaced, overwritten or cut while it is read can never be measured under the digest of another.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from app.checkpoints.format.headers import BYTES, Tensor, open_regular
from app.errors import CheckpointRefused

T = TypeVar("T")

_CHUNK = 1 << 20
THREADS = max(1, min(8, os.cpu_count() or 1))
"""How many tensors are read and hashed at once: SHA-256 is slower than the page cache, and uses one core for each."""


class Weights:
    """The bytes of a folder's tensors, and the SHA-256 of each that was read."""

    def __init__(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        self._folder, self._tensors = folder, tensors
        self._hashes: dict[str, str] = {}
        self._running: dict[str, tuple[int, Any]] = {}

    def size(self, name: str) -> int:
        """Bytes of a tensor.

        Raises:
            CheckpointRefused: `checkpoint_unsupported` for a type whose size is not known.
        """
        tensor = self._tensors[name]
        if tensor.dtype not in BYTES:
            raise CheckpointRefused(
                "checkpoint_unsupported",
                f"{self._folder}: {name} is stored as {tensor.dtype}, which Lethe does not read; save the model again",
            )
        return BYTES[tensor.dtype] * math.prod(tensor.shape)

    def span(self, name: str, begin: int, end: int) -> bytearray:
        """The bytes begin:end of a tensor.

        Ask for spans in order, from 0 to the tensor's end; a span at 0 starts over.

        Raises:
            CheckpointRefused: `checkpoint_changed` when a file became shorter, or holds other bytes than before.
        """
        at, running = (0, hashlib.sha256()) if begin == 0 else self._running[name]
        if begin != at:
            raise ValueError(f"bytes {begin} to {end} of {name} were asked for after byte {at}")
        data = bytearray(end - begin)
        self._fill(name, begin, memoryview(data), running.update)
        self._running[name] = end, running
        if end == self.size(name):
            del self._running[name]
            self._note(name, running.hexdigest())
        return data

    def read(self, name: str) -> bytearray:
        """All bytes of a tensor."""
        return self.span(name, 0, self.size(name))

    def spans(self, name: str, at_once: int) -> Iterator[bytearray]:
        """All bytes of a tensor, `at_once` at a time; a tensor without elements gives one empty piece."""
        size = self.size(name)
        for begin in range(0, max(size, 1), at_once):
            yield self.span(name, begin, min(size, begin + at_once))

    def read_all(self, names: Iterable[str], done: Callable[[], None] = lambda: None) -> dict[str, bytearray]:
        """Whole tensors by name, several at once; `done` is called after each, in this thread, and may raise."""
        return dict(self._each(names, self.read, done))

    def hashes(self) -> dict[str, str]:
        """Tensor -> SHA-256 of its bytes in hex, for all of them; reads those that were not read yet."""
        for _ in self._each([name for name in self._tensors if name not in self._hashes], self._pass_over):
            pass
        return dict(self._hashes)

    def _each(
        self, names: Iterable[str], read: Callable[[str], T], done: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[str, T]]:
        largest_first = sorted(names, key=lambda name: -self.size(name))
        with ThreadPoolExecutor(THREADS, thread_name_prefix="weights") as pool:
            try:
                for name, found in zip(largest_first, pool.map(read, largest_first), strict=True):
                    done()
                    yield name, found
            finally:
                pool.shutdown(cancel_futures=True)

    def _pass_over(self, name: str) -> None:
        for _ in self.spans(name, 4 * _CHUNK):
            pass

    def _fill(self, name: str, begin: int, view: memoryview, take: Callable[[memoryview], None]) -> None:
        """Read bytes from `begin` on into `view`; `take` is given each piece while it is in the processor's cache."""
        tensor = self._tensors[name]
        with open_regular(self._folder / tensor.file) as file:
            at = tensor.start + begin
            while view:
                count = self._read(file.fileno(), view[:_CHUNK], at, tensor.file)
                if not count:
                    raise CheckpointRefused(
                        "checkpoint_changed",
                        f"{self._folder / tensor.file} became shorter while it was read; leave it unchanged, try again",
                    )
                take(view[:count])
                view, at = view[count:], at + count

    def _read(self, descriptor: int, view: memoryview, at: int, name: str) -> int:
        try:
            return os.preadv(descriptor, [view], at)
        except OSError as error:
            raise CheckpointRefused(
                "checkpoint_unreadable", f"{self._folder / name} cannot be read: {error.strerror}"
            ) from error

    def _note(self, name: str, found: str) -> None:
        if self._hashes.setdefault(name, found) != found:
            raise CheckpointRefused(
                "checkpoint_changed",
                f"{self._folder}: {name} changed while it was read; leave the files unchanged, try again",
            )
