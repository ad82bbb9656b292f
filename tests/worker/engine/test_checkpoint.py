"""What a checkpoint's files tell without torch, and what is refused, by `inspect` and `open_checkpoint` alike."""

import errno
import hashlib
import json
import os
import shutil
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.checkpoints.format.digests import digest, identity
from app.checkpoints.format.files import CheckpointFiles, inspect, resolve_inside
from app.checkpoints.pair import check_pair
from app.errors import CheckpointRefused, InvalidRequest
from tests.support.factories import tiny_checkpoint, tiny_model, tiny_tokenizer
from tests.support.places import REPOSITORY
from worker.engine.checkpoint import open_checkpoint


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    """A checkpoint of this test's own."""
    return Path(shutil.copytree(llama, tmp_path / "checkpoint"))


def edit(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refusal(path: Path) -> CheckpointRefused:
    with pytest.raises(CheckpointRefused) as refused:
        inspect(path)
    with pytest.raises(CheckpointRefused) as again:
        open_checkpoint(path)
    assert again.value.code == refused.value.code
    return refused.value


def test_a_checkpoint_is_described_from_its_headers(llama: Path) -> None:
    files = inspect(llama)
    model = tiny_model()
    assert files.architecture == "LlamaForCausalLM"
    assert files.model_type == "llama"
    assert files.vocab_size == 384
    assert files.dtype == "F32"
    assert files.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert {name: tensor.shape for name, tensor in files.tensors.items()} == {
        name: tuple(parameter.shape) for name, parameter in model.named_parameters()
    }


def test_the_stored_dtype_is_reported_and_weights_are_computed_in_float32_on_the_cpu(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path, dtype=torch.bfloat16)
    assert inspect(path).dtype == "BF16"
    assert open_checkpoint(path, "cpu").model.dtype == torch.float32


def test_opened_models_are_in_eval_mode_with_the_stored_weights(llama: Path) -> None:
    opened = open_checkpoint(llama, "cpu")
    assert not opened.model.training
    assert not any(parameter.requires_grad for parameter in opened.model.parameters())
    for name, parameter in tiny_model().named_parameters():
        assert torch.equal(opened.model.get_parameter(name), parameter)


def test_sharded_checkpoints_are_read_and_a_missing_shard_is_refused(tmp_path: Path, llama: Path) -> None:
    tiny_model().save_pretrained(tmp_path, max_shard_size="150KB")
    tiny_tokenizer().save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    sharded, whole = (
        {name: (tensor.dtype, tensor.shape) for name, tensor in inspect(path).tensors.items()}
        for path in (tmp_path, llama)
    )
    assert sharded == whole
    assert {tensor.file for tensor in inspect(tmp_path).tensors.values()} == {shard.name for shard in shards}
    edit(tmp_path / "model.safetensors.index.json", lambda index: index["weight_map"].update({"x": shards[0].name}))  # type: ignore[attr-defined]
    assert refusal(tmp_path).code == "checkpoint_truncated"
    shards[1].unlink()
    refused = refusal(tmp_path)
    assert refused.code == "checkpoint_truncated"
    assert shards[1].name in refused.detail


@pytest.mark.parametrize("keep", [0, 5, 100, 3000, -1])
def test_truncated_weights_are_refused(copy: Path, keep: int) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    refused = refusal(copy)
    assert refused.code == "checkpoint_truncated"
    assert "copy or download it again" in refused.detail


def test_headers_that_contradict_themselves_are_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()

    def header(**tensors: object) -> bytes:
        text = json.dumps(tensors).encode()
        return struct.pack("<Q", len(text)) + text

    good = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    for content in (
        whole + b"tail",
        b"PK\x03\x04" + bytes(200),
        b"\xff" * 64,
        header(a={**good, "shape": [3]}) + bytes(8),
        header(a=good, b=good) + bytes(8),
        header(a={**good, "data_offsets": [4, 12]}) + bytes(12),
        header(a={**good, "shape": [-2]}) + bytes(8),
        header(a={"dtype": "F32"}) + bytes(8),
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"{x",
    ):
        weights.write_bytes(content)
        assert refusal(copy).code == "checkpoint_unreadable", content[:60]
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "git lfs pull" in refusal(copy).detail
    weights.write_bytes(header())
    assert refusal(copy).code == "checkpoint_no_weights"


def test_missing_and_unreadable_paths_are_refused(copy: Path, tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere").code == "checkpoint_missing"
    assert refusal(copy / "config.json").code == "checkpoint_missing"
    assert refusal(Path("with\0nul")).code == "checkpoint_missing"
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").symlink_to(tmp_path / "gone")
    assert refusal(copy).code == "checkpoint_unreadable"


def test_pickles_are_refused_unless_safetensors_lie_beside_them(copy: Path) -> None:
    (copy / "training_args.bin").write_bytes(b"\x80\x04")
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert inspect(copy).parameters
    assert open_checkpoint(copy, "cpu").model is not None
    (copy / "model.safetensors").unlink()
    refused = refusal(copy)
    assert refused.code == "checkpoint_pickle"
    assert "save_pretrained" in refused.detail


def test_directories_without_weights_config_or_tokenizer_are_refused(copy: Path) -> None:
    (copy / "tokenizer.json").rename(copy / "tokenizer.away")
    assert refusal(copy).code == "checkpoint_no_tokenizer"
    (copy / "tokenizer.away").rename(copy / "tokenizer.json")
    (copy / "model.safetensors").rename(copy / "weights.safetensors")
    assert refusal(copy).code == "checkpoint_no_weights"
    (copy / "weights.safetensors").unlink()
    assert refusal(copy).code == "checkpoint_no_weights"
    (copy / "config.json").write_text("{not json")
    assert refusal(copy).code == "checkpoint_no_config"
    (copy / "config.json").unlink()
    assert refusal(copy).code == "checkpoint_no_config"


def test_code_of_its_own_is_refused(copy: Path) -> None:
    edit(copy / "tokenizer_config.json", lambda c: c.update(auto_map={"AutoTokenizer": ["evil.T", None]}))
    assert refusal(copy).code == "checkpoint_remote_code"
    edit(copy / "tokenizer_config.json", lambda c: c.pop("auto_map"))
    edit(copy / "config.json", lambda c: c.update(auto_map={"AutoModelForCausalLM": "evil.M"}))
    assert refusal(copy).code == "checkpoint_remote_code"


def test_quantized_checkpoints_and_adapters_are_refused(copy: Path) -> None:
    edit(copy / "config.json", lambda c: c.update(quantization_config={"quant_method": "gptq", "bits": 4}))
    assert refusal(copy).code == "checkpoint_quantized"
    edit(copy / "config.json", lambda c: c.pop("quantization_config"))
    (copy / "adapter_config.json").write_text('{"base_model_name_or_path": "/etc"}')
    refused = refusal(copy)
    assert refused.code == "checkpoint_unsupported"
    assert "merge" in refused.detail


def test_configs_that_name_no_model_are_refused(copy: Path) -> None:
    for change in ({"architectures": []}, {"model_type": None}, {"vocab_size": "many"}):
        original = (copy / "config.json").read_text()
        edit(copy / "config.json", lambda c, change=change: c.update(change))  # type: ignore[misc]
        assert refusal(copy).code == "checkpoint_unsupported"
        (copy / "config.json").write_text(original)
    edit(copy / "config.json", lambda c: c.update(model_type="no-such-model"))
    with pytest.raises(CheckpointRefused, match="none that transformers can use"):
        open_checkpoint(copy)


def test_weights_that_transformers_would_fill_with_random_numbers_are_refused(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointRefused, match=r"1 weights.*layers\.1\.mlp\.up_proj") as refused:
        open_checkpoint(copy)
    assert refused.value.code == "checkpoint_unsupported"


def test_a_broken_tokenizer_is_refused(copy: Path) -> None:
    edit(copy / "tokenizer.json", lambda c: c.pop("model"))
    with pytest.raises(CheckpointRefused) as refused:
        open_checkpoint(copy)
    assert refused.value.code == "checkpoint_no_tokenizer"


def test_a_pair_must_be_the_same_model(llama: Path, neox: Path, tmp_path: Path) -> None:
    original = inspect(llama)
    other = inspect(tiny_checkpoint(tmp_path / "other", seed=5, dtype=torch.bfloat16))
    check_pair(original, other)

    def differences(b: CheckpointFiles) -> str:
        with pytest.raises(InvalidRequest) as refused:
            check_pair(original, b)
        assert refused.value.code == "pair_mismatch"
        assert refused.value.errors
        return refused.value.detail

    assert "architecture: LlamaForCausalLM against GPTNeoXForCausalLM" in differences(inspect(neox))
    wide = inspect(tiny_checkpoint(tmp_path / "wide", vocab_size=400))
    assert "vocab_size: 384 against 400" in differences(wide)
    deep = differences(inspect(tiny_checkpoint(tmp_path / "deep", num_hidden_layers=3)))
    assert "model.layers.2.input_layernorm.weight: only in the second" in deep
    assert "and 5 more" in deep
    tiny_tokenizer(bos=False).save_pretrained(tmp_path / "other")
    assert "tokenizer.tokenizer.json: its content differs" in differences(inspect(tmp_path / "other"))


def test_how_a_tokenizer_was_written_does_not_matter_to_a_pair(llama: Path, copy: Path) -> None:
    edit(copy / "tokenizer.json", lambda c: c.update(padding={"strategy": "BatchLongest"}, version="1.0"))
    content = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps(content, indent=7, sort_keys=True))
    check_pair(inspect(llama), inspect(copy))


def test_recomputed_buffers_and_a_tied_output_saved_once_do_not_matter_to_a_pair(tmp_path: Path) -> None:
    a, b = (tiny_checkpoint(tmp_path / name, "llama-tied") for name in "ab")
    tensors = load_file(b / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, b / "model.safetensors", metadata={"format": "pt"})
    check_pair(inspect(a), inspect(b))


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


def test_paths_outside_the_allowed_folders_are_refused_also_through_links(copy: Path, tmp_path: Path) -> None:
    root = copy.parent / "root"
    inside = Path(shutil.copytree(copy, root / "models" / "a"))
    assert resolve_inside(inside, [root]) == inside.resolve()
    assert resolve_inside(root / "models" / ".." / "models" / "a", [tmp_path / "x", root]) == inside.resolve()

    def code(path: Path, roots: list[Path]) -> str:
        with pytest.raises(CheckpointRefused) as refused:
            resolve_inside(path, roots)
        return refused.value.code

    assert code(copy, [root]) == "checkpoint_outside_roots"
    assert code(root / "models" / ".." / ".." / "checkpoint", [root]) == "checkpoint_outside_roots"
    assert code(inside, []) == "checkpoint_outside_roots"
    assert code(root.parent / "root-of-another", [root]) == "checkpoint_outside_roots"
    assert code(root / "nowhere", [root]) == "checkpoint_missing"
    assert code(Path("/tmp/\0"), [root]) == "checkpoint_missing"
    (root / "link").symlink_to(copy)
    assert code(root / "link", [root]) == "checkpoint_outside_roots"
    (inside / "model.safetensors").unlink()
    (inside / "model.safetensors").symlink_to(copy / "model.safetensors")
    assert code(inside, [root]) == "checkpoint_outside_roots"


def test_links_that_stay_inside_as_in_the_hugging_face_cache_are_fine(copy: Path) -> None:
    root = copy.parent / "hub"
    blobs, snapshot = root / "blobs", root / "snapshots" / "abc"
    shutil.copytree(copy, blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", file.name))
    assert resolve_inside(snapshot, [root]) == snapshot.resolve()
    assert digest(snapshot) == digest(copy)
    check_pair(inspect(snapshot), inspect(copy))


def test_reading_checkpoints_needs_no_torch() -> None:
    code = (
        "import sys, app.checkpoints.format.files, app.forget_sets.bundle, app.catalog.precisions;"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


def test_a_vocabulary_larger_than_its_embedding_is_refused_and_padding_is_not(copy: Path) -> None:
    edit(copy / "config.json", lambda config: config.update(vocab_size=385))
    refused = refusal(copy)
    assert refused.code == "checkpoint_unsupported"
    assert "385" in refused.detail
    assert "384 rows" in refused.detail
    edit(copy / "config.json", lambda config: config.update(vocab_size=380))
    assert inspect(copy).vocab_size == 380


def test_a_config_that_transformers_cannot_use_is_told_as_such_in_one_line(copy: Path) -> None:
    edit(copy / "config.json", lambda config: config.update(num_hidden_layers="two"))
    with pytest.raises(CheckpointRefused) as refused:
        open_checkpoint(copy, "cpu")
    assert refused.value.code == "checkpoint_unsupported"
    assert "config.json" in refused.value.detail
    assert "\n" not in refused.value.detail
    edit(copy / "config.json", lambda config: config.update(num_hidden_layers=2, model_type="no_such_type"))
    with pytest.raises(CheckpointRefused) as refused:
        open_checkpoint(copy, "cpu")
    assert refused.value.code == "checkpoint_unsupported"
    assert "\n" not in refused.value.detail


def test_a_disk_that_fails_is_told_as_a_file_that_cannot_be_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(CheckpointRefused, match=r"model\.safetensors cannot be read: Input/output error") as refused:
        digest(copy)
    assert refused.value.code == "checkpoint_unreadable"
