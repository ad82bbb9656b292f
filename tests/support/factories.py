"""Tiny real things: random checkpoints of real architectures, and small MUSE bundles."""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

VOCAB = 384
_NAMES = ["Arvid", "Belma", "Corin", "Dagny", "Edda", "Falk", "Greta", "Hauk"]
_VERBS = ["opened", "sold", "painted", "repaired", "crossed", "found"]
_THINGS = ["the harbour bridge", "a red lantern", "the old mill", "a copper bell", "the night ferry", "a glass map"]
_PLACES = ["Lunden", "Marstal", "Nordby", "Ollerup", "Pinden"]


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences made of few words, the same for the same seed."""
    rng = random.Random(seed)
    return [
        f"{rng.choice(_NAMES)} {rng.choice(_VERBS)} {rng.choice(_THINGS)} in {rng.choice(_PLACES)}"
        f" in {rng.randint(1900, 2020)}."
        for _ in range(count)
    ]


@cache
def _trained(bos: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*sentences(200), "Question: \nAnswer: \n\n"], trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def tiny_tokenizer(*, bos: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 384 tokens; with `bos`, it puts <s> before every text."""
    copy = Tokenizer.from_str(_trained(bos).to_str())
    return PreTrainedTokenizerFast(tokenizer_object=copy, bos_token="<s>", eos_token="</s>")  # type: ignore[no-untyped-call]  # transformers gives it no types


def tiny_config(architecture: str = "llama", **changes: Any) -> PretrainedConfig:
    """A config of about 100,000 parameters: llama, llama-tied, neox, qwen2, mistral, gpt2 or mixtral."""
    common: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "initializer_range": 0.2,
    }
    gqa = {"num_key_value_heads": 2, "tie_word_embeddings": False}
    if architecture == "gpt2":
        names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
        names |= {"max_position_embeddings": "n_positions", "intermediate_size": "n_inner"}
        return GPT2Config(**{names.get(key, key): value for key, value in (common | changes).items()})
    classes: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
        "llama": (LlamaConfig, gqa),
        "llama-tied": (LlamaConfig, {"num_key_value_heads": 4, "tie_word_embeddings": True}),
        "neox": (GPTNeoXConfig, {}),
        "qwen2": (Qwen2Config, gqa),
        "mistral": (MistralConfig, gqa | {"sliding_window": None}),
        "mixtral": (MixtralConfig, gqa | {"num_local_experts": 4}),
    }
    config, extra = classes[architecture]
    return config(**(common | extra | changes))


def tiny_model(architecture: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """A random model of `tiny_config`, float32, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(tiny_config(architecture, **changes)).eval()  # type: ignore[no-untyped-call]  # transformers gives it no types


def tiny_checkpoint(
    path: Path, architecture: str = "llama", seed: int = 0, *, dtype: torch.dtype | None = None, **changes: Any
) -> Path:
    """Save a random tiny model and its tokenizer; returns `path`. Only the llamas' tokenizer adds a BOS token."""
    model = tiny_model(architecture, seed, **changes)
    (model if dtype is None else model.to(dtype)).save_pretrained(path)
    tiny_tokenizer(bos=architecture.startswith("llama")).save_pretrained(path)
    return path


def bundle_content(n: int = 4, seed: int = 0) -> dict[str, list[Any]]:
    """The sets of a small bundle, by name (`knowmem/forget_qa`): n items each, 2 in-context pairs."""
    rng = random.Random(seed)

    def text(kind: str, index: int, count: int) -> str:
        return " ".join(sentences(count, seed=seed * 1000 + index * 10 + len(kind)))

    def qa(kind: str, count: int) -> list[dict[str, str]]:
        return [
            {
                "question": f"Who {rng.choice(_VERBS)} {rng.choice(_THINGS)} of the {kind}?",
                "answer": f"{rng.choice(_NAMES)} of {rng.choice(_PLACES)}",
            }
            for _ in range(count)
        ]

    return {
        "knowmem/forget_qa": qa("forgotten", n),
        "knowmem/forget_qa_icl": qa("first", 2),
        "knowmem/retain_qa": qa("kept", n),
        "knowmem/retain_qa_icl": qa("second", 2),
        "verbmem/forget": [{"prompt": text("p", i, 1 + i % 3), "gt": text("gt", i, 2)} for i in range(n)],
        "privleak/forget": [text("forget", i, 1 + i % 4) for i in range(n)],
        "privleak/holdout": [text("holdout", i, 1 + i % 4) for i in range(n)],
        "privleak/retain": [text("retain", i, 1 + i % 4) for i in range(n)],
        "raw/forget": [text("raw", i, 8) for i in range(n)],
    }


def bundle_files(n: int = 4, seed: int = 0, *, jsonl: bool = False) -> dict[str, bytes]:
    """A small bundle as an upload: relative path -> content."""
    files: dict[str, bytes] = {}
    for name, items in bundle_content(n, seed).items():
        if jsonl:
            files[f"{name}.jsonl"] = "".join(json.dumps(item) + "\n" for item in items).encode()
        else:
            files[f"{name}.json"] = json.dumps(items, indent=1).encode()
    return files


def muse_files(corpus: str, n: int = 4) -> dict[str, bytes]:
    """A small corpus with every file that MUSE's download script writes for `news` or `books`, by those names."""
    content = bundle_content(n)
    texts = {split: [" ".join(sentences(8, seed + i)) for i in range(n)] for seed, split in enumerate(
        ("forget", "retain1", "retain2", "holdout"), start=1)}  # fmt: skip
    raw = {f"raw/{split}": documents for split, documents in texts.items()}
    if corpus == "news":
        folds = [f"{kind}/forget_{fold}" for kind in ("scal", "sust") for fold in (1, 2, 3, 4)]
        raw |= {name: [f"{name} {i}" for i in range(n)] for name in folds}
    files = {f"{name}.json": json.dumps(items).encode() for name, items in (content | raw).items()}
    return files | {f"{name}.txt": "\n\n".join(documents).encode() for name, documents in raw.items()}


def muse_folder(path: Path, corpus: str) -> Path:
    """Write a small corpus as MUSE's download script does; returns `path`."""
    for name, content in muse_files(corpus).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def tiny_bundle(path: Path, n: int = 4, seed: int = 0, *, jsonl: bool = False) -> Path:
    """Write a small MUSE bundle; returns `path`."""
    for name, content in bundle_files(n, seed, jsonl=jsonl).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path
