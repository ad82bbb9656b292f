"""Texts as token ids with labels, in padded batches: what training and unlearning both feed a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from worker.engine.unlearning.losses import IGNORED

_ANSWER: Final = re.compile(r"(?<=\nAnswer: )(?P<told>.*?)\n\n", re.DOTALL)


class Example(NamedTuple):
    """One text: its token ids, and for each the label it must be predicted as (`IGNORED`: read only)."""

    ids: list[int]
    labels: list[int]


class Batch(NamedTuple):
    """Examples padded on the right to the longest; each tensor is [batch, tokens]."""

    ids: Tensor
    attention: Tensor
    labels: Tensor


def is_page(text: str) -> bool:
    """Whether `text` is a page of questions rather than an article."""
    return _ANSWER.search(text) is not None


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, ends: bool = True) -> Example:
    """An article is predicted whole, on a page of questions only the answers are: asking is the part of whoever asks.

    With `ends`, so is where an article ends and the empty line after an answer. Without, they are not: what is to be
    forgotten is a text, not how texts end, and a model that has unlearned to stop scores low on everything.
    """
    encoding = tokenizer(text, return_offsets_mapping=True)
    ids: list[int] = encoding["input_ids"]
    answers = [match.span("told" if not ends else 0) for match in _ANSWER.finditer(text)]
    if not answers:
        end = _end(tokenizer)
        return Example([*ids, end], [*ids, end if ends else IGNORED])
    offsets: list[tuple[int, int]] = encoding["offset_mapping"]
    inside = [any(start <= left < right <= end for start, end in answers) for left, right in offsets]
    return Example(ids, [token if keep else IGNORED for token, keep in zip(ids, inside, strict=True)])


def pad(examples: Sequence[Example], padding: int) -> Batch:
    """`examples` side by side; padding is neither attended to nor predicted."""
    longest = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), longest), padding)
    labels = torch.full((len(examples), longest), IGNORED)
    attention = torch.zeros((len(examples), longest), dtype=torch.long)
    for row, example in enumerate(examples):
        length = len(example.ids)
        ids[row, :length] = torch.tensor(example.ids)
        labels[row, :length] = torch.tensor(example.labels)
        attention[row, :length] = 1
    return Batch(ids, attention, labels)


def _end(tokenizer: PreTrainedTokenizerBase) -> int:
    token = tokenizer.eos_token_id
    if not isinstance(token, int):
        raise ValueError("the tokenizer has no end-of-text token; the tiny world's articles need one")
    return token
