"""Continuations in batches, greedy or sampled, with the same results as one prompt at a time.

Of the checkpoint's generation config only the end tokens are used, because a repetition penalty or a forced token would
change what the model seems to remember.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.engine.inference import prompts as reading
from worker.engine.inference.batches import in_batches
from worker.engine.inference.cache import is_attention_only
from worker.engine.inference.prompts import Rows, forward
from worker.engine.inference.subject import Subject

Choose = Callable[[Tensor, Tensor, int], Tensor]
"""(logits [rows, vocabulary], which of the batch's rows these are, step) -> the next token of each."""
_WORTH_DROPPING = 0.75
"""Ended rows leave the batch once no more than this share of it is left: leaving copies the cache of all others."""
_TAIL = 24
"""Tokens whose text is searched for what ends a row; a stop string is shorter."""


class Continuation(NamedTuple):
    """What a model generated after one prompt."""

    ids: list[int]
    """Ends with an end token or with the token that completed a stop string."""
    finite: bool
    """False when the logits of some step held NaN or +inf: a collapsed model."""


def greedy(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    *,
    stop: Sequence[str] = (),
    tick: Callable[[int], None],
) -> list[Continuation]:
    """The most likely continuation of each prompt, token by token.

    Args:
        subject: Model and tokenizer.
        prompts: Token ids, at least one each.
        new_tokens: The most tokens to generate.
        stop: A row ends once its text holds one of these; the text before it is the same as without.
        tick: Called at every token with the number of finished prompts; may raise to stop.

    Returns:
        One continuation per prompt, in the order given.
    """
    return _in_batches(subject, prompts, new_tokens, stop, tick, lambda batch: most_likely)


def sampled(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    draws: Sequence[NDArray[np.float64]],
    temperature: float,
    *,
    tick: Callable[[int], None],
) -> list[Continuation]:
    """One continuation of each prompt, drawn from softmax(logits / temperature) without top-k or top-p.

    Token t of a row is the first at which the cumulative probability exceeds the row's draw t. That is computed on the
    CPU in float64, so the result depends on logits and draws alone, not on the device's generator or the batch.
    (Logits do differ by rounding between batches and devices: a draw that close to a boundary may fall on the other
    side.)

    Args:
        subject, prompts, tick: As for `greedy`.
        draws: For each prompt a row of numbers in [0, 1), one for each new token.
        temperature: Above 0.
    """

    def choose(batch: list[int]) -> Choose:
        own = torch.from_numpy(np.stack([draws[i] for i in batch]))

        def draw(logits: Tensor, rows: Tensor, step: int) -> Tensor:
            cumulated = (logits.cpu().double() / temperature).softmax(dim=1).cumsum(dim=1)
            drawn = own[rows.cpu(), step, None] * cumulated[:, -1:]
            tokens = torch.searchsorted(cumulated, drawn, right=True)[:, 0].clamp(max=logits.shape[1] - 1)
            return tokens.to(logits.device)

        return draw

    return _in_batches(subject, prompts, len(draws[0]) if len(draws) else 0, (), tick, choose)


def _in_batches(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    stop: Sequence[str],
    tick: Callable[[int], None],
    choose: Callable[[list[int]], Choose],
) -> list[Continuation]:
    found: dict[int, Continuation] = {}
    cached = is_attention_only(subject.model) and not subject.reads_alone
    beginning = reading.common_beginning(subject, prompts) if reading.can_share(subject) else None

    def run(batch: list[int]) -> None:
        if cached:
            rows = reading.read(subject, [prompts[i] for i in batch], beginning, new_tokens)
            outputs = generate(subject, rows, new_tokens, stop, choose(batch), lambda: tick(len(found)))
        else:
            outputs = [
                _alone(subject, prompts[i], new_tokens, stop, choose([i]), lambda: tick(len(found))) for i in batch
            ]
        found.update(zip(batch, outputs, strict=True))

    lengths = [len(prompt) + new_tokens for prompt in prompts]
    in_batches(lengths, subject.token_budget, run, tick)
    return [found[i] for i in range(len(prompts))]


@torch.inference_mode()
def generate(
    subject: Subject, rows: Rows, new_tokens: int, stop: Sequence[str], choose: Choose, tick: Callable[[], None]
) -> list[Continuation]:
    """A continuation of each of the rows that were read; the rows are used up.

    Args:
        rows: With room for `new_tokens`.
    """
    batch = _Batch(subject, len(rows.lengths), stop)
    logits, cache, mask, lengths = rows.logits, rows.cache, rows.mask, rows.lengths
    padded = bool((lengths != rows.width).any())
    for step in range(new_tokens):
        tokens = batch.take(choose(batch.finite(logits.float()), batch.alive, step))
        tick()
        left = batch.left()
        if len(left) == 0 or step == new_tokens - 1:
            break
        if len(left) <= _WORTH_DROPPING * len(batch.alive):
            cache.keep(left)
            batch.keep(left)
            tokens, mask, lengths = tokens[left], mask[left], lengths[left]
        logits = forward(
            subject,
            tokens[:, None],
            attention_mask=mask[:, : rows.width + step + 1] if padded else None,
            position_ids=(lengths + step)[:, None],
            past_key_values=cache,
            use_cache=True,
            keep=1,
        )[:, -1]
    return batch.continuations()


class _Batch:
    """A batch being generated: ends rows, and keeps what they said."""

    def __init__(self, subject: Subject, rows: int, stop: Sequence[str]) -> None:
        self.subject, self.stop = subject, stop
        self.alive = torch.arange(rows, device=subject.device)
        """Which of the batch's rows are still here; some may have ended."""
        self.ended = torch.zeros(rows, dtype=torch.bool, device=subject.device)
        self.broken = torch.zeros_like(self.ended)
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self.is_finite = [True] * rows
        self._eos = torch.tensor(subject.eos_ids, device=subject.device, dtype=torch.long)

    def finite(self, logits: Tensor) -> Tensor:
        """The logits, with zeros in rows that hold no numbers: arg-max stays defined there."""
        bad = torch.isnan(logits).any(dim=1) | (logits == torch.inf).any(dim=1) | ~torch.isfinite(logits).any(dim=1)
        self.broken = bad
        return torch.where(bad[:, None], torch.zeros_like(logits), logits)

    def take(self, tokens: Tensor) -> Tensor:
        """Note the next token of each row that has not ended, and end those that end here."""
        ends = torch.isin(tokens, self._eos) | self.broken
        before = self.ended.tolist()
        alive, said, ending, broken = self.alive.tolist(), tokens.tolist(), ends.tolist(), self.broken.tolist()
        for place, row in enumerate(alive):
            if before[place]:
                continue
            self.ids[row].append(said[place])
            self.is_finite[row] &= not broken[place]
            if not ending[place] and self.stop and self._stopped(self.ids[row]):
                ends[place] = True
        self.ended |= ends
        return tokens

    def left(self) -> Tensor:
        """Places of the rows that go on."""
        return (~self.ended).nonzero()[:, 0]

    def keep(self, places: Tensor) -> None:
        """Let the other rows go."""
        self.alive, self.ended = self.alive[places], self.ended[places]

    def continuations(self) -> list[Continuation]:
        """What all rows said."""
        return [Continuation(ids, ok) for ids, ok in zip(self.ids, self.is_finite, strict=True)]

    def _stopped(self, ids: list[int]) -> bool:
        # The whole text only where its end looks like it: decoding it at every token would cost more than the model.
        if not any(word in self.subject.decode(ids[-_TAIL:]) for word in self.stop):
            return False
        text = self.subject.decode(ids)
        return any(word in text for word in self.stop)


def most_likely(logits: Tensor, rows: Tensor, step: int) -> Tensor:
    """What greedy decoding chooses."""
    return logits.argmax(dim=1)


@torch.inference_mode()
def _alone(
    subject: Subject,
    prompt: Sequence[int],
    new_tokens: int,
    stop: Sequence[str],
    choose: Choose,
    tick: Callable[[], None],
) -> Continuation:
    """One prompt by itself, for models that keep more than keys and values: what they keep, only they can hold."""
    batch, model = _Batch(subject, 1, stop), cast(Any, subject.model)
    ids, past = torch.tensor([prompt], device=subject.device), None
    for step in range(new_tokens):
        found = model(input_ids=ids, past_key_values=past, use_cache=True)
        past = getattr(found, "past_key_values", None)
        tokens = batch.take(choose(batch.finite(found.logits[:, -1].float()), batch.alive, step))
        tick()
        if len(batch.left()) == 0:
            break
        ids = tokens[:, None] if past is not None else torch.cat((ids, tokens[:, None]), dim=1)
    return batch.continuations()[0]
