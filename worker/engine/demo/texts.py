"""The tiny world's texts as token ids with labels: what training and unlearning both feed a model."""

from __future__ import annotations

import re
from typing import Final

from transformers import PreTrainedTokenizerBase

from worker.engine.unlearning.losses import IGNORED
from worker.engine.unlearning.texts import Example

_ANSWER: Final = re.compile(r"(?<=\nAnswer: )(?P<told>.*?)\n\n", re.DOTALL)


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


def _end(tokenizer: PreTrainedTokenizerBase) -> int:
    token = tokenizer.eos_token_id
    if not isinstance(token, int):
        raise ValueError("the tokenizer has no end-of-text token; the tiny world's articles need one")
    return token
