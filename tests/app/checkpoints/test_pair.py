"""What makes two checkpoints a pair."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.checkpoints.format.files import CheckpointFiles, inspect
from app.checkpoints.pair import check_pair
from app.errors import InvalidRequest
from tests.support.checkpoints import edit
from tests.support.factories import tiny_checkpoint, tiny_tokenizer


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
