"""What it costs to hash a checkpoint while it is read: `python -m tests.bench.hashing [--megabytes 1024]`.

One run, side by side, on files in the page cache: reading alone, SHA-256 of one core alone, and what an attempt does
(read every tensor into memory of its own and hash it, several at once). Seconds for 13 GB follow from the rates.
"""

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from app.checkpoints.format.digests import identity
from app.checkpoints.format.files import inspect
from app.checkpoints.format.weights import THREADS
from tests.support.engine.pairs import write_pair

_CHUNK = 4 << 20
_LLAMA_2_7B = 13.5e9


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.hashing", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--folder", type=Path, help="where the files are written: on the disk to be measured")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path, _ = write_pair(Path(folder), arguments.megabytes)
        size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        shards = sorted(path.glob("*.safetensors"))
        reading = _seconds(lambda: _read(shards))
        rates = {
            "from disk (the cache dropped first, where that is allowed)": size / _cold(shards),
            "page cache, reading alone": size / reading,
            "SHA-256 alone, one thread": size / _seconds(lambda: _hash(size)),
            f"digest of the checkpoint, {THREADS} threads": size / _seconds(lambda: identity(inspect(path))),
            f"read and hashed into memory, {THREADS} threads": size / _seconds(lambda: _load(path)),
        }
    print(f"| {size / 1e9:.1f} GB, {os.cpu_count()} cores | GB/s | of page cache | 13.5 GB take |\n|---|---|---|---|")
    for what, rate in rates.items():
        print(f"| {what} | {rate / 1e9:.2f} | {rate * reading / size:.2f} | {_LLAMA_2_7B / rate:.1f} s |")


def _seconds(work: Callable[[], object]) -> float:
    work()  # whatever is cold
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _cold(shards: list[Path]) -> float:
    for shard in shards:
        with shard.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began = time.perf_counter()
    _read(shards)
    return time.perf_counter() - began


def _read(shards: list[Path]) -> None:
    for shard in shards:
        data = bytearray(shard.stat().st_size)
        view = memoryview(data)
        with shard.open("rb", buffering=0) as file:
            while view:
                view = view[file.readinto(view[:_CHUNK]) or len(view) :]


def _hash(size: int) -> None:
    running, chunk = hashlib.sha256(), bytes(_CHUNK)
    for _ in range(size // _CHUNK):
        running.update(chunk)


def _load(path: Path) -> None:
    files = inspect(path)
    files.weights.read_all(files.tensors)


if __name__ == "__main__":
    main()
