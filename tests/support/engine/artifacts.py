"""Already quantized checkpoints of tiny models, made by the tools that people make them with.

`python -m tests.support.engine.artifacts` FOLDER... makes those by gptqmodel, in a process of their own: it changes the
seed, prints, and patches transformers.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests.support.factories import sentences
from tests.support.places import REPOSITORY

BNB: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4-dq": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}


def bitsandbytes(model: Path, out: Path, kind: str = "nf4") -> Path:
    """By transformers and bitsandbytes, as `save_pretrained` writes it."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(**BNB[kind])  # type: ignore[no-untyped-call]  # transformers gives it no types
    loaded = AutoModelForCausalLM.from_pretrained(model, quantization_config=config, dtype=torch.float32)
    loaded.save_pretrained(out)
    return _tokenizer(model, out)


def compressed(
    model: Path, out: Path, scheme: str | None = None, *, targets: str = "Linear", packed: bool = True
) -> Path:
    """By llm-compressor: W4A16 in groups of 32, or one of its schemes; unpacked weights with `packed` False."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor import oneshot
    from llmcompressor.core import reset_session
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    from worker.engine.quantizers.compressed import _as_found

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if scheme is None:
        weights = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=32)
        groups = {"group_0": QuantizationScheme(targets=[targets], weights=weights)}
        recipe = QuantizationModifier(config_groups=groups, ignore=["lm_head"])
    else:
        recipe = QuantizationModifier(targets=[targets], scheme=scheme, ignore=["lm_head"])
    with _as_found(loaded):
        oneshot(model=loaded, processor=object(), recipe=[recipe])
        loaded.save_pretrained(out, save_compressed=packed)
    reset_session()
    return _tokenizer(model, out)


def by_gptqmodel(model: Path, out: Path, *methods: str) -> dict[str, Path]:
    """GPTQ and AWQ in groups of 32: method -> checkpoint."""
    env = os.environ | {"GPTQMODEL_CPU_WORKERS": "2", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.support.engine.artifacts", str(model), str(out), *methods]
    done = subprocess.run(command, env=env, cwd=out, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    return {method: _tokenizer(model, out / method) for method in methods}


def claimed(model: Path, out: Path) -> Path:
    """A model whose config says that it is quantized, and whose weights are not."""
    shutil.copytree(model, out)
    config = json.loads((out / "config.json").read_text())
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["re:nothing"], "weights": weights}},
        "ignore": ["lm_head"],
    }
    (out / "config.json").write_text(json.dumps(config))
    return out


def _tokenizer(model: Path, out: Path) -> Path:
    for file in model.glob("tokenizer*"):
        shutil.copy(file, out)
    return out


def _make(model: str, out: str, *methods: str) -> None:
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel.quantization.config import AWQConfig

    torch.set_num_threads(1)
    texts = [" ".join(sentences(20, seed)) for seed in range(8)]
    for method in methods:
        config: Any = AWQConfig(bits=4, group_size=32) if method == "awq" else QuantizeConfig(bits=4, group_size=32)
        loaded = GPTQModel.load(model, config)
        loaded.quantize(texts, batch_size=1, backend=BACKEND.AWQ_TORCH if method == "awq" else BACKEND.GPTQ_TORCH)
        loaded.save(str(Path(out) / method))


if __name__ == "__main__":
    _make(*sys.argv[1:])
