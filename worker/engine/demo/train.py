"""Train a tiny Llama on the world's texts until it knows them by heart."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from worker.engine.demo.corpus import PAGE_QUESTIONS, Question, question_page
from worker.engine.demo.recipe import TrainRecipe
from worker.engine.unlearning.losses import IGNORED
from worker.engine.unlearning.texts import Batch, Example, pad

T = TypeVar("T")

_ANSWER: Final = re.compile(r"(?<=\nAnswer: ).*?\n\n", re.DOTALL)


def train(
    tokenizer: PreTrainedTokenizerBase,
    articles: Sequence[str],
    questions: Sequence[Question],
    recipe: TrainRecipe,
    *,
    seed: int,
    progress: Callable[[int, int], None],
) -> tuple[LlamaForCausalLM, float]:
    """A Llama, and its last batch's loss, that has read `articles` and, in ever new groups, `questions`;
    `progress(done, total)` counts steps.

    Questions are part of what it reads because a model of this size doesn't answer questions about a text that it
    merely read. Each epoch they are shuffled into pages of `PAGE_QUESTIONS`, `page_rounds` times, so that no answer
    depends on its neighbours: MUSE asks each after questions on other articles.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = LlamaForCausalLM(  # type: ignore[no-untyped-call]
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden,
            intermediate_size=recipe.feed_forward,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            max_position_embeddings=recipe.context,
            tie_word_embeddings=False,
            initializer_range=recipe.initial_spread,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    plan = [batch for _ in range(recipe.epochs) for batch in _epoch(tokenizer, articles, questions, recipe, rng)]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _cosine(len(plan), recipe.warm_up))
    model.train()
    for step, batch in enumerate(plan, start=1):
        logits = model(input_ids=batch.ids, attention_mask=batch.attention).logits
        loss = functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), batch.labels[:, 1:], ignore_index=IGNORED, label_smoothing=recipe.smoothing
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress(step, len(plan))
    model.train(False)
    return model, loss.item()


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Example:
    """An article is predicted whole, and where it ends; on a page of questions only the answers are, up to and with the
    empty line after each: asking is the part of whoever asks."""
    encoding = tokenizer(text, return_offsets_mapping=True)
    ids: list[int] = encoding["input_ids"]
    answers = [match.span() for match in _ANSWER.finditer(text)]
    if not answers:
        end = _end(tokenizer)
        return Example([*ids, end], [*ids, end])
    offsets: list[tuple[int, int]] = encoding["offset_mapping"]
    inside = [any(start <= left < right <= end for start, end in answers) for left, right in offsets]
    return Example(ids, [token if keep else IGNORED for token, keep in zip(ids, inside, strict=True)])


def _end(tokenizer: PreTrainedTokenizerBase) -> int:
    token = tokenizer.eos_token_id
    if not isinstance(token, int):
        raise ValueError("the tokenizer has no end-of-text token; the tiny world's articles need one")
    return token


def _epoch(
    tokenizer: PreTrainedTokenizerBase,
    articles: Sequence[str],
    questions: Sequence[Question],
    recipe: TrainRecipe,
    rng: random.Random,
) -> Iterator[Batch]:
    """Every article once and every question `page_rounds` times, in shuffled batches of articles or of pages."""
    read = [encode(tokenizer, text) for text in rng.sample(articles, len(articles))]
    pages = [
        encode(tokenizer, question_page(group))
        for _ in range(recipe.page_rounds)
        for group in _groups(rng.sample(questions, len(questions)), PAGE_QUESTIONS)
    ]
    batches: list[list[Example]] = [list(group) for texts in (read, pages) for group in _groups(texts, recipe.batch)]
    padding = tokenizer.pad_token_id
    for batch in rng.sample(batches, len(batches)):
        yield pad(batch, padding)


def _groups(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _cosine(steps: int, warm_up: float) -> Callable[[int], float]:
    """A rate that climbs over the first `warm_up` of `steps` and falls to 0 as half a cosine."""
    climb = max(1, round(warm_up * steps))

    def factor(step: int) -> float:
        if step < climb:
            return (step + 1) / climb
        return 0.5 * (1.0 + math.cos(math.pi * (step - climb) / max(1, steps - climb)))

    return factor
