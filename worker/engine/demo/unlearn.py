"""Make a model forget: gradient ascent on the forget set, descent on the retain set, and a rule when to stop."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from worker.engine.demo.grid import decoder_linears
from worker.engine.demo.recipe import UnlearnRecipe
from worker.engine.demo.texts import encode, is_page
from worker.engine.demo.watch import Reading, Watch
from worker.engine.unlearning.losses import gradient_ascent, gradient_descent_retain, unlearning_loss
from worker.engine.unlearning.texts import Example, pad

T = TypeVar("T")


class Stop(NamedTuple):
    """Where unlearning stopped, and why: `forgotten`, `utility_floor` or `max_steps`; `reading` is of the model
    kept."""

    reason: str
    step: int
    reading: Reading
    history: tuple[tuple[int, Reading], ...]


def unlearn(
    original: Path,
    out: Path,
    forget_set: Path,
    recipe: UnlearnRecipe | None = None,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Stop:
    """Unlearn `raw/forget.json` of the bundle `forget_set` from the checkpoint `original`; writes a checkpoint to
    `out`.

    L = L_GA(forget) + α · L_GDR(retain), AdamW without decay, float32, decoder linears only: the weights that a
    quantizer rounds. `UnlearnRecipe(learning_rate=…)` decides whether forgetting survives rounding: `recipe.STRONG`
    does.

    **When it stops.** Gradient ascent has no end of its own: from forgotten to ruined it is some forty steps here. So
    every `check_every` steps half of the bundle's items are read (`watch.Watch`; the other half never is). It stops at
    the first reading at which they are forgotten in all three senses that MUSE measures: passages, answers and
    membership. It also stops at the first at which utility has fallen below the floor, and then goes back to the
    reading before. In between, a sort of text that is forgotten rests until a reading says that it is back: articles
    when passages and membership are, pages of questions when answers are. Without that, whichever goes first is driven
    on to ruin while the other is waited for. Reported scores should be read with this in mind: the watched half decides
    when to stop and what rests, though what is unlearned is `raw/forget.json` alone.
    """
    recipe = recipe or UnlearnRecipe()
    tokenizer = AutoTokenizer.from_pretrained(original)
    model = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32)
    stop = unlearn_model(
        model,
        tokenizer,
        json.loads((forget_set / "raw/forget.json").read_text(encoding="utf-8")),
        json.loads((forget_set / "raw/retain.json").read_text(encoding="utf-8")),
        Watch(tokenizer, forget_set),
        recipe,
        seed=seed,
        progress=progress or (lambda _done, _total: None),
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return stop


def unlearn_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    forget: Sequence[str],
    retain: Sequence[str],
    watch: Callable[[PreTrainedModel], Reading],
    recipe: UnlearnRecipe,
    *,
    seed: int,
    progress: Callable[[int, int], None],
) -> Stop:
    """`unlearn` on a model in memory, in place; `progress(done, total)` counts steps, of which it may not need all."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    weights = [module.weight for module in decoder_linears(model).values()]
    model.train(False)
    model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0)
    forgets = _streams(tokenizer, forget, _Sorts(recipe.forget_articles, recipe.forget_pages), rng, ends=False)
    retains = _streams(tokenizer, retain, _Sorts(recipe.retain_articles, recipe.retain_pages), rng, ends=True)

    padding = tokenizer.pad_token_id

    start = watch(model)
    history = [(0, start)]
    kept = Stop("max_steps", 0, start, tuple(history))
    if articles_forgotten(start, recipe) and answers_forgotten(start, recipe):
        return kept._replace(reason="forgotten")
    kept_weights = [weight.detach().clone() for weight in weights]
    for step in range(1, recipe.max_steps + 1):
        f = pad([example for stream in _awake(forgets, kept.reading, recipe) for example in next(stream)], padding)
        r = pad([example for stream in retains for example in next(stream)], padding)
        l_forget = gradient_ascent(model(input_ids=f.ids, attention_mask=f.attention).logits, f.labels)
        l_retain = gradient_descent_retain(model(input_ids=r.ids, attention_mask=r.attention).logits, r.labels)
        optimizer.zero_grad()
        unlearning_loss(l_forget, l_retain, recipe.alpha).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        progress(step, recipe.max_steps)
        if step % recipe.check_every == 0 or step == recipe.max_steps:
            reading = watch(model)
            history.append((step, reading))
            if reading.utility < recipe.utility_floor * start.utility:
                with torch.no_grad():
                    for weight, before in zip(weights, kept_weights, strict=True):
                        weight.copy_(before)
                return kept._replace(reason="utility_floor", history=tuple(history))
            kept = Stop("max_steps", step, reading, tuple(history))
            if articles_forgotten(reading, recipe) and answers_forgotten(reading, recipe):
                return kept._replace(reason="forgotten")
            kept_weights = [weight.detach().clone() for weight in weights]
    return kept


def articles_forgotten(reading: Reading, recipe: UnlearnRecipe) -> bool:
    """Whether the watched articles can neither be continued nor be told from ones that were never read."""
    return reading.passages <= recipe.forgotten_passages and reading.membership >= recipe.forgotten_membership


def answers_forgotten(reading: Reading, recipe: UnlearnRecipe) -> bool:
    """Whether the watched questions can no longer be answered."""
    return reading.answers <= recipe.forgotten_answers


class _Sorts(NamedTuple, Generic[T]):
    """One thing for the articles, one for the pages of questions."""

    articles: T
    pages: T


def _awake(
    streams: _Sorts[Iterator[list[Example]]], reading: Reading, recipe: UnlearnRecipe
) -> list[Iterator[list[Example]]]:
    """The streams of what `reading` does not call forgotten; it never calls everything so, for then it is over."""
    forgotten = (articles_forgotten(reading, recipe), answers_forgotten(reading, recipe))
    return [stream for stream, rests in zip(streams, forgotten, strict=True) if not rests]


def _streams(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], sizes: _Sorts[int], rng: random.Random, *, ends: bool
) -> _Sorts[Iterator[list[Example]]]:
    """Batches without end of `sizes` texts: of articles, and of pages of questions."""
    articles, pages = (
        _forever([encode(tokenizer, text, ends=ends) for text in texts if is_page(text) == page], size, rng)
        for page, size in zip((False, True), sizes, strict=True)
    )
    return _Sorts(articles, pages)


def _forever(examples: Sequence[Example], size: int, rng: random.Random) -> Iterator[list[Example]]:
    """Batches of `size` without end: every example once in random order, then again in another."""
    if not examples:
        raise ValueError("the raw texts of a tiny world hold articles and pages of questions; one sort is missing")
    waiting: list[Example] = []
    while True:
        while len(waiting) < size:
            waiting += rng.sample(examples, len(examples))
        yield waiting[:size]
        waiting = waiting[size:]
