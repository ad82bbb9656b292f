"""Texts as token ids with labels, in padded batches, and the order in which training sees them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from worker.engine.inference.subject import Subject
from worker.engine.unlearning.losses import IGNORED


class Example(NamedTuple):
    """One text: its token ids, and for each the label it must be predicted as (`IGNORED`: read only)."""

    ids: list[int]
    labels: list[int]


class Batch(NamedTuple):
    """Examples padded on the right to the longest; each tensor is [batch, tokens]."""

    ids: Tensor
    attention: Tensor
    labels: Tensor


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


def cut(subject: Subject, texts: Sequence[str], max_length: int) -> list[Example]:
    """The texts, predicted whole; what is longer than `max_length` tokens (or the model's window) comes in pieces.

    Each piece begins with the special tokens that the tokenizer puts before a text, as in MUSE's training. A piece of
    one token has nothing to predict and is left out.
    """
    start = subject.encode("")
    room = min(max_length, subject.window or max_length) - len(start)
    pieces = [
        [*start, *ids[at : at + room]]
        for ids in (subject.encode(text, special=False) for text in texts)
        for at in range(0, len(ids), room)
    ]
    return [Example(ids, ids) for ids in pieces if len(ids) > 1]


_RETAIN: Final = 1


class Draw(NamedTuple):
    """Indices into the examples: what one forward pass reads."""

    forget: list[int]
    retain: list[int]


class Draws(Dataset[Draw]):
    """`count` draws, known beforehand from the seed alone: nothing has to be saved to go on in the same order.

    Every example comes once in random order, then again in another; a draw may reach over the end of a pass.
    """

    def __init__(self, forget: int, retain: int, sizes: tuple[int, int], count: int, seed: int) -> None:
        self._sizes = sizes
        self._forget = _stream(forget, count * sizes[0], random.Random(seed))
        self._retain = _stream(retain, count * sizes[1] if retain else 0, random.Random(seed + _RETAIN))
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Draw:
        if not 0 <= index < self._count:
            raise IndexError(index)
        forget, retain = (slice(index * size, (index + 1) * size) for size in self._sizes)
        return Draw(self._forget[forget], self._retain[retain])


def _stream(examples: int, length: int, rng: random.Random) -> list[int]:
    found: list[int] = []
    while len(found) < length:
        found += rng.sample(range(examples), examples)
    return found[:length]
