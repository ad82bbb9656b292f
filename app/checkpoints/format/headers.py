"""Safetensors headers, read by hand: 8 bytes of length (little endian), that much JSON, then the tensors' bytes.

No tensor is read, so a 100 GB checkpoint costs kilobytes. Source: the README of huggingface/safetensors, "Format".
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG
from typing import IO, Any, NamedTuple

from app.errors import CheckpointRefused

BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
"""Bytes per element; the sizes of other types (sub-byte ones) are not checked."""

_LONGEST = 100_000_000  # the format's own limit for a header
_LFS = b"version https://git-lfs"


class Tensor(NamedTuple):
    """A tensor as its file's header describes it."""

    dtype: str
    shape: tuple[int, ...]
    file: str = ""
    """The file's name."""
    start: int = 0
    """Where its bytes start in the file; rows follow each other (C order), little endian."""


@contextmanager
def open_regular(path: Path) -> Iterator[IO[bytes]]:
    """A regular file, opened for unbuffered reading; anything else is refused, as opening a FIFO would block forever.

    Raises:
        CheckpointRefused: `checkpoint_unreadable`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointRefused("checkpoint_unreadable", f"{path.name} cannot be read: {error.strerror}") from error
    if not S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointRefused("checkpoint_unreadable", f"{path} is not a regular file; remove it")
    with open(descriptor, "rb", buffering=0) as file:
        yield file


def read_header(path: Path) -> dict[str, Tensor]:
    """Tensor name -> dtype and shape of one safetensors file, checked against the file's size.

    Raises:
        CheckpointRefused: `checkpoint_truncated` when the file is shorter than its header says, `checkpoint_unreadable`
            when it is not a safetensors file or its header contradicts itself.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            start, brace = file.read(8), file.read(1)
            if _LFS.startswith(start) and size >= 8:
                raise CheckpointRefused(
                    "checkpoint_truncated", f"{path.name} is a Git LFS pointer, not the weights; run: git lfs pull"
                )
            length = int.from_bytes(start, "little")
            if brace not in (b"{", b""):
                raise _unreadable(path, "this is not a safetensors file")
            if size < 8 or (length <= _LONGEST and 8 + length > size):
                raise _truncated(path, 8 + length if size >= 8 else 8, size)
            if length > _LONGEST:
                raise _unreadable(path, f"its header would be {length} bytes long: this is not a safetensors file")
            raw = brace + _exactly(file, length - 1)
    except OSError as error:
        raise CheckpointRefused("checkpoint_unreadable", f"{path.name} cannot be read: {error.strerror}") from error
    try:
        header = json.loads(raw, object_pairs_hook=no_doubles)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise _unreadable(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    return _tensors(path, header, 8 + length, size - 8 - length)


def _exactly(file: IO[bytes], count: int) -> bytes:
    """Read this many bytes, or as many as there are: an unbuffered read may return fewer."""
    found = bytearray()
    while len(found) < count and (more := file.read(count - len(found))):
        found += more
    return bytes(found)


def no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object hook for `json` that refuses an entry given twice: some parsers use the first, others the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it names an entry twice")
    return found


def _tensors(path: Path, header: dict[str, Any], data: int, room: int) -> dict[str, Tensor]:
    """The entries; the tensors' bytes start at `data`, and there are `room` of them."""
    tensors: dict[str, Tensor] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        try:
            begin, end = entry["data_offsets"]
            tensor = Tensor(str(entry["dtype"]), tuple(entry["shape"]), path.name, data + begin)
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable(path, f"its header's entry for {name!r} lacks dtype, shape or data_offsets") from error
        if not all(type(n) is int and n >= 0 for n in (*tensor.shape, begin, end)) or end < begin:
            raise _unreadable(path, f"its header gives {name!r} an impossible shape or offset")
        expected = BYTES.get(tensor.dtype, 0) * math.prod(tensor.shape)
        if tensor.dtype in BYTES and end - begin != expected:
            raise _unreadable(path, f"{name!r} needs {expected} bytes but its offsets span {end - begin}")
        tensors[name] = tensor
        spans.append((begin, end, name))
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            raise _unreadable(
                path, f"the bytes of {name!r} start at {begin}, not where the tensor before it ends ({at})"
            )
        at = end
    if at > room:
        raise _truncated(path, at, room)
    if at < room:
        raise _unreadable(path, f"{room - at} bytes after its last tensor belong to no tensor")
    return tensors


def _truncated(path: Path, needed: int, present: int) -> CheckpointRefused:
    return CheckpointRefused(
        "checkpoint_truncated",
        f"{path.name} is cut off: {needed} bytes are needed and {present} are present; copy or download it again",
    )


def _unreadable(path: Path, why: str) -> CheckpointRefused:
    return CheckpointRefused("checkpoint_unreadable", f"{path.name} cannot be used: {why}; save or download it again")
