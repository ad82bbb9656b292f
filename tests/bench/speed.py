"""`make bench`: MUSE's published loop, Lethe, and what the hardware allows, side by side in one run.

python -m tests.bench.speed                                   34 million parameters on the CPU, one thread
python -m tests.bench.speed --shape tiny --items 100          a model of the demo's shape, and its forget set
python -m tests.bench.speed --shape 7b --device cuda          Llama-2-7B's shape in bfloat16, on a GPU

Weights are random: such a model never ends an answer. Texts are MUSE-News' own where `--muse` names its folder, and
made-up ones of the same lengths where it does not.
"""

import argparse
import json
import random
import resource
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from app.catalog.precisions import PRECISIONS
from app.evidence.evaluation import GenerationScores, PrivLeakScores
from app.forget_sets.bundle import Bundle, parse, read_directory
from tests.bench import plain
from tests.bench.rates import Rates, measure, seconds
from worker.engine import precisions as registry
from worker.engine.checkpoint import open_checkpoint
from worker.engine.demo.bundle import make_world, write_bundle
from worker.engine.demo.recipe import WorldRecipe
from worker.engine.diagnosis.overlap import diagnose
from worker.engine.evaluate import TOKEN_BUDGET
from worker.engine.inference.subject import Subject
from worker.engine.muse.knowmem import knowmem
from worker.engine.muse.privleak import privleak
from worker.engine.muse.verbmem import NEW_TOKENS, verbmem

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4},
    "34m": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}
VOCABULARY = 8192


class Stage(NamedTuple):
    """One line of the table."""

    name: str
    plain: float | None
    """Seconds, like all three; None where the published loop does no such thing."""
    lethe: float
    limit: float
    difference: float | None = None
    """The largest between scores of an item."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="34m")
    parser.add_argument("--items", type=int, default=12, help="items per metric")
    parser.add_argument("--muse", type=Path, help="a folder with MUSE-News, as its download script writes it")
    given = parser.parse_args()
    device = torch.device(given.device)
    torch.set_num_threads(1)  # several on a busy machine measure the neighbours
    if given.muse:
        bundle = parse(read_directory(given.muse))
    else:
        bundle = of_the_demo() if given.shape == "tiny" else made_up(given.items)
    tokenizer = train_tokenizer(bundle)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = build(given.shape, device, dtype)
    rates = measure(device, dtype)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, one thread"
    print(
        f"{name}; torch {torch.__version__}; {given.shape} ({model.num_parameters() / 1e6:.1f} M parameters);"
        f" at most {given.items} items per metric{' of MUSE-News' if given.muse else ''};"
        f" {rates.flops / 1e9:.0f} GFLOP/s, {rates.bytes / 1e9:.1f} GB/s\n"
    )
    run = Run(model, tokenizer, bundle, given.items, rates, device)
    stages = [run.verbmem(), run.knowmem("forget"), run.knowmem("retain"), run.privleak()]
    whole = Stage(
        "whole suite",
        sum(stage.plain or 0.0 for stage in stages),
        sum(stage.lethe for stage in stages),
        sum(stage.limit for stage in stages),
        max(stage.difference or 0.0 for stage in stages),
    )
    print("| | plain, s | Lethe, s | ratio | limit, s | share of the limit | largest difference |")
    print("|---|---|---|---|---|---|---|")
    for stage in chain(stages, [whole], run.files(given.shape), run.quantizers(given.shape)):
        loop = (
            "– | {0:.2f} | –"
            if stage.plain is None
            else f"{stage.plain:.2f} | {{0:.2f}} | {stage.plain / stage.lethe:.1f}"
        )
        difference = "–" if stage.difference is None else f"{stage.difference:.1g}"
        print(
            f"| {stage.name} | {loop.format(stage.lethe)} | {stage.limit:.2f} | {stage.limit / stage.lethe:.0%} |"
            f" {difference} |",
            flush=True,
        )
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"\npeak memory: {peak / 1e6:.0f} MB")


class Run:
    """The stages on one model and its texts."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        bundle: Bundle,
        items: int,
        rates: Rates,
        device: torch.device,
    ) -> None:
        self.model, self.tokenizer, self.bundle, self.items = model, tokenizer, bundle, items
        self.rates, self.device = rates, device
        self.subject = Subject(model, tokenizer, TOKEN_BUDGET[device.type])
        config = model.config
        kept = model.num_parameters() - model.get_input_embeddings().weight.numel()
        self.linear: float = 2 * kept
        """Operations per token, but for attention."""
        self.attention: float = 4 * config.num_hidden_layers * config.hidden_size
        """Operations per token and token before it."""
        self.weights: float = kept * model.dtype.itemsize
        self.cached: float = 2 * config.num_hidden_layers * config.hidden_size * model.dtype.itemsize
        """Bytes of keys and values per token."""

    def verbmem(self) -> Stage:
        items = self.bundle.verbmem[: self.items]
        found: dict[str, Any] = {}

        def ours() -> None:
            found["lethe"] = verbmem(self.subject, items, lambda *step: None)

        def theirs() -> None:
            found["plain"] = plain.verbmem(
                self.model, self.tokenizer, [(item.prompt, item.continuation) for item in items]
            )

        lethe, loop = seconds(ours, self.device), seconds(theirs, self.device)
        prompts = [len(self.subject.encode(item.prompt)) for item in items]
        limit = self._read(prompts) + self._generated(prompts, NEW_TOKENS)
        return Stage("VerbMem", loop, lethe, limit, _difference(found["plain"], found["lethe"]))

    def knowmem(self, which: str) -> Stage:
        forget = which == "forget"
        items = (self.bundle.forget_qa if forget else self.bundle.retain_qa)[: self.items]
        shots = self.bundle.forget_qa_icl if forget else self.bundle.retain_qa_icl
        found: dict[str, Any] = {}

        def ours() -> None:
            found["lethe"] = knowmem(self.subject, items, shots, f"knowmem_{which}", lambda *step: None)

        def theirs() -> None:
            found["plain"] = plain.knowmem(
                self.model,
                self.tokenizer,
                [(item.question, item.answer) for item in items],
                [(shot.question, shot.answer) for shot in shots],
            )

        lethe, loop = seconds(ours, self.device), seconds(theirs, self.device)
        few = sum(len(self.subject.encode(f"Question: {s.question}\nAnswer: {s.answer}\n\n")) for s in shots)
        own = [len(self.subject.encode(f"Question: {item.question}\nAnswer: ")) for item in items]
        limit = self._read([few]) + self._read(own, after=few) + self._generated([few + n for n in own], 32)
        return Stage(f"KnowMem {which}", loop, lethe, limit, _difference(found["plain"], found["lethe"]))

    def privleak(self) -> Stage:
        forget, holdout = (texts[: self.items] for texts in (self.bundle.privleak_forget, self.bundle.privleak_holdout))
        found: dict[str, Any] = {}

        def ours() -> None:
            found["lethe"] = privleak(self.subject, forget, holdout, [], lambda *step: None)

        def theirs() -> None:
            found["plain"] = plain.privleak(self.model, self.tokenizer, [*forget, *holdout])

        lethe, loop = seconds(ours, self.device), seconds(theirs, self.device)
        limit = self._read([len(self.subject.encode(text)) for text in (*forget, *holdout)])
        return Stage("PrivLeak", loop, lethe, limit, _difference(found["plain"], found["lethe"]))

    def files(self, shape: str) -> Iterator[Stage]:
        """Opening a checkpoint, and comparing two."""
        with tempfile.TemporaryDirectory() as folder:
            for seed, name in enumerate(("original", "unlearned")):
                self._save(build(shape, torch.device("cpu"), torch.bfloat16, seed), Path(folder) / name)
            original, unlearned = Path(folder) / "original", Path(folder) / "unlearned"
            size = sum(file.stat().st_size for file in original.glob("*.safetensors"))

            def theirs() -> None:
                auto: Any = AutoModelForCausalLM
                auto.from_pretrained(original, dtype=self.model.dtype).to(self.device)

            loop = seconds(theirs, self.device)
            ours = seconds(lambda: open_checkpoint(original, str(self.device)), self.device)
            # Read once, written once in the dtype of the computation.
            moved = size + size / 2 * self.model.dtype.itemsize
            yield Stage("load and hash", loop, ours, moved / self.rates.bytes)
            compared = seconds(lambda: diagnose(original, unlearned), self.device)
            yield Stage("diagnosis", None, compared, 2 * size / self.rates.bytes)

    def quantizers(self, shape: str) -> Iterator[Stage]:
        """Applying a precision, with its proof."""
        moved = 2 * self.model.num_parameters() * self.model.dtype.itemsize
        for name in ("rtn-int8", "rtn-int4", "rtn-int4-g32", "bnb-nf4", "bnb-int8"):
            model = build(shape, self.device, self.model.dtype)
            applied = seconds(partial(registry.apply, model, PRECISIONS[name]), self.device)
            yield Stage(name, None, applied, moved / self.rates.bytes)

    def _save(self, model: Any, folder: Path) -> None:
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def _read(self, lengths: Sequence[int], after: int = 0) -> float:
        """Seconds to read texts of so many tokens, each after so many others."""
        pairs = sum(n * after + n * n / 2 for n in lengths)
        return (self.linear * sum(lengths) + self.attention * pairs) / self.rates.flops

    def _generated(self, lengths: Sequence[int], tokens: int) -> float:
        """Seconds to generate so many tokens after each of these prompts, all of them at once."""
        flops = self.linear * len(lengths) * tokens + self.attention * tokens * sum(lengths)
        moved = tokens * (self.weights + self.cached * (sum(lengths) + len(lengths) * tokens / 2))
        return max(flops / self.rates.flops, moved / self.rates.bytes)


def _difference(theirs: Sequence[float], ours: GenerationScores | PrivLeakScores) -> float:
    own = ours.scores if isinstance(ours, GenerationScores) else [*ours.forget.min_k["40"], *ours.holdout.min_k["40"]]
    return max(abs(a - b) for a, b in zip(theirs, own, strict=True))


def build(shape: str, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Any:
    """A random Llama of a shape that never ends a text by itself."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=4096, bos_token_id=0, eos_token_id=None, **SHAPES[shape]
    )
    auto: Any = AutoModelForCausalLM
    with device:
        return auto.from_config(config, dtype=dtype).eval()


def made_up(items: int) -> Bundle:
    """Texts of made-up words as long as MUSE-News': prompts of 1,000 tokens, examples of 40, texts of 2,000."""
    rng = random.Random(0)
    syllables = [vowel + consonant for vowel in "aeiou" for consonant in "bdfgklmnprstvz"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(6000)]

    def text(count: int) -> str:
        return " ".join(rng.choices(words, k=count))

    def questions(count: int) -> list[dict[str, str]]:
        return [{"question": text(20) + "?", "answer": text(10)} for _ in range(count)]

    content: dict[str, list[Any]] = {
        "verbmem/forget": [{"prompt": text(rng.randint(950, 1050)), "gt": text(300)} for _ in range(items)],
        "privleak/forget": [text(rng.randint(1900, 2050)) for _ in range(items)],
        "privleak/holdout": [text(rng.randint(1900, 2050)) for _ in range(items)],
    }
    for name in ("forget", "retain"):
        content[f"knowmem/{name}_qa"], content[f"knowmem/{name}_qa_icl"] = questions(items), questions(10)
    return parse({f"{name}.json": json.dumps(members).encode() for name, members in content.items()})


def of_the_demo() -> Bundle:
    """The demo's own forget set, which needs no training."""
    with tempfile.TemporaryDirectory() as folder:
        write_bundle(make_world(WorldRecipe(), seed=0), Path(folder), seed=0)
        return parse(read_directory(Path(folder)))


def train_tokenizer(bundle: Bundle) -> Any:
    """A byte-level BPE on the bundle's own texts."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([*bundle.privleak_forget, *bundle.privleak_holdout], trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")


if __name__ == "__main__":
    main()
