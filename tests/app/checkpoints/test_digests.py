"""What a checkpoint's digest covers, and when its files are read again."""

import errno
import hashlib
import json
import os
import sqlite3
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from app.checkpoints.format.digests import digest, identity
from app.checkpoints.format.files import inspect
from app.errors import CheckpointRefused
from tests.support.checkpoints import edit
from tests.support.factories import tiny_model, tiny_tokenizer


def test_the_digest_is_what_its_definition_says(copy: Path) -> None:
    def sha256(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    lines = ""
    for name, tensor in sorted(load_file(copy / "model.safetensors").items()):
        shape = "x".join(map(str, tensor.shape))
        lines += f"{sha256(tensor.numpy().tobytes())}  F32  {shape}  {name}\n"
    tensors = f"sha256:{sha256(lines.encode())}"
    names = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    files = "".join(f"{sha256((copy / name).read_bytes())}  {name}\n" for name in names)
    found = identity(inspect(copy))
    assert found.tensors == tensors
    assert found.digest == f"sha256:{sha256(f'{tensors}  tensors{chr(10)}{files}'.encode())}" == digest(copy)


def test_the_digest_covers_what_is_read_and_nothing_else(copy: Path) -> None:
    before = digest(copy)
    for name in ("README.md", ".hidden.json", "unlearning.json", "notes.json", "chat_template.jinja", "x.safetensors"):
        (copy / name).write_text("{}")
    (copy / "runs").mkdir()
    (copy / "runs" / "log.json").write_text("{}")
    assert digest(copy) == before
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        whole = (copy / name).read_text()
        edit(copy / name, lambda content: content.update(note=1))
        assert digest(copy) != before, name
        (copy / name).write_text(whole)
    assert digest(copy) == before


def test_how_tensors_are_cut_into_files_does_not_change_what_a_checkpoint_is(tmp_path: Path, llama: Path) -> None:
    tiny_model().save_pretrained(tmp_path, max_shard_size="150KB")
    tiny_tokenizer().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert identity(inspect(tmp_path)) == identity(inspect(llama))


def test_files_that_the_kernel_calls_unchanged_are_read_once(copy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "digests.sqlite"
    until_settled(copy / "model.safetensors")
    first = digest(copy, cache)
    with sqlite3.connect(cache) as connection:
        (kept,) = connection.execute("SELECT tensors FROM tensor_digests").fetchone()
        names = list(json.loads(kept))
        connection.execute("UPDATE tensor_digests SET tensors = ?", (json.dumps(dict.fromkeys(names, "remembered")),))
    assert digest(copy, cache) != first
    os.utime(copy / "model.safetensors")
    assert digest(copy, cache) == first


def test_a_file_overwritten_in_place_is_read_again_whatever_its_size_and_times_say(copy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "digests.sqlite"
    file = copy / "model.safetensors"
    until_settled(file)
    first, before = digest(copy, cache), file.stat()
    with file.open("r+b") as weights:
        weights.seek(-4, os.SEEK_END)
        weights.write(b"\0\0\0@")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert digest(copy, cache) == digest(copy) != first


def until_settled(file: Path) -> None:
    """Wait until the file's times are old enough to be remembered."""
    while time.time_ns() - file.stat().st_ctime_ns < 2_100_000_000:
        time.sleep(0.1)


def test_a_file_written_a_moment_ago_is_not_remembered(copy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "digests.sqlite"
    # A minute ahead: on a busy machine "a moment ago" may be over before the digest is made.
    soon = time.time() + 60
    os.utime(copy / "model.safetensors", (soon, soon))
    digest(copy, cache)
    with sqlite3.connect(cache) as connection:
        assert connection.execute("SELECT count(*) FROM tensor_digests").fetchone()[0] == 0


def test_a_cache_that_cannot_be_used_costs_only_time(copy: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.sqlite"
    broken.write_bytes(b"no database" * 100)
    assert digest(copy, broken) == digest(copy, tmp_path) == digest(copy, copy / "config.json" / "x") == digest(copy)


def test_digests_of_what_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused) as refused:
        digest(tmp_path / "nowhere")
    assert refused.value.code == "checkpoint_missing"


def test_a_disk_that_fails_is_told_as_a_file_that_cannot_be_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(CheckpointRefused, match=r"model\.safetensors cannot be read: Input/output error") as refused:
        digest(copy)
    assert refused.value.code == "checkpoint_unreadable"
