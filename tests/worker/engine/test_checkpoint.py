"""What a checkpoint's files tell without torch, and what is refused, by `inspect` and `open_checkpoint` alike."""

import json
import struct
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.checkpoints.format.files import inspect
from app.errors import CheckpointRefused
from tests.support.checkpoints import edit
from tests.support.factories import tiny_checkpoint, tiny_model, tiny_tokenizer
from worker.engine.checkpoint import open_checkpoint


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
    edit(tmp_path / "model.safetensors.index.json", lambda index: index["weight_map"].update({"x": shards[0].name}))
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
    changes: list[dict[str, object]] = [{"architectures": []}, {"model_type": None}, {"vocab_size": "many"}]
    for change in changes:
        original = (copy / "config.json").read_text()
        edit(copy / "config.json", partial(dict.update, **change))
        assert refusal(copy).code == "checkpoint_unsupported"
        (copy / "config.json").write_text(original)
    edit(copy / "config.json", lambda c: c.update(model_type="no-such-model"))
    with pytest.raises(CheckpointRefused, match="cannot be used by transformers"):
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
