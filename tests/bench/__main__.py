"""`make bench`: what batching is worth, and what a precision costs.

python -m tests.bench                              a tiny model on the CPU
python -m tests.bench --device cuda --shape 7b     Llama-2-7B's shape with random weights, on a GPU
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from app.catalog.metrics import MetricId
from app.catalog.precisions import PRECISIONS
from app.forget_sets.bundle import parse
from tests.support.factories import bundle_files, tiny_tokenizer
from worker.engine import precisions as registry
from worker.engine.muse import suite
from worker.engine.muse.subject import Subject

SHAPES = {
    "tiny": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}

BATCHED = 8192
"""Tokens in a batch."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--items", type=int, default=16, help="items per metric")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(1)  # several on a busy machine measure the neighbours
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, one thread"
    print(f"device: {name}; torch {torch.__version__}; shape: {options.shape}; {options.items} items per metric\n")

    bundle = parse(bundle_files(options.items))
    tokenizer = tiny_tokenizer()

    def measure(model: PreTrainedModel, metric: MetricId, budget: int) -> float:
        subject = Subject(model, tokenizer, budget)
        return seconds(lambda: suite.run(subject, bundle, (metric,), lambda *_: None), device)

    model = build(options.shape, len(tokenizer), device)
    print(f"{'metric':16} {'one by one':>12} {'batched':>12} {'ratio':>8}")
    for metric in ("verbmem", "knowmem_forget", "privleak"):
        measure(model, metric, BATCHED)  # warm up
        alone, together = measure(model, metric, 1), measure(model, metric, BATCHED)
        print(f"{metric:16} {alone:>10.2f} s {together:>10.2f} s {alone / together:>7.1f}x")

    baseline = measure(model, "privleak", BATCHED)
    del model
    print(f"\n{'precision':16} {'to apply':>12} {'PrivLeak, against full precision':>34}")
    for name in ("rtn-int8", "rtn-int4", "rtn-int4-g128", "bnb-nf4", "bnb-int8"):
        model = build(options.shape, len(tokenizer), device)
        applied = seconds(partial(registry.apply, model, PRECISIONS[name], lambda *_: None), device)
        measure(model, "privleak", BATCHED)  # warm up
        measured = measure(model, "privleak", BATCHED)
        print(f"{name:16} {applied:>10.2f} s {measured / baseline:>33.2f}x")
        del model


def build(shape: str, vocabulary: int, device: torch.device) -> PreTrainedModel:
    """A random Llama of a shape: bfloat16 on a GPU, float32 on the CPU, as the engine opens checkpoints."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(SHAPES[shape])
    config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=4096, **sizes)
    with device:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]  # transformers gives it no types
        found: PreTrainedModel = model.eval()
        return found


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall seconds of one call, the device's queue emptied before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
