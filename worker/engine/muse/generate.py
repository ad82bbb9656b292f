"""Continuations in batches, greedy or sampled, with the same results as one prompt at a time.

Prompts are padded on the left, with explicit position ids. Of the checkpoint's generation config only the end tokens
are used, because a repetition penalty or a forced token would change what the model seems to remember.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from worker.engine.muse.batches import in_batches
from worker.engine.muse.subject import Subject


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
    return _in_batches(subject, prompts, new_tokens, stop, tick, lambda batch: [])


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
    return _in_batches(
        subject,
        prompts,
        len(draws[0]) if len(draws) else 0,
        (),
        tick,
        lambda batch: [_Drawn(np.stack([draws[i] for i in batch]), temperature)],
    )


def _in_batches(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    stop: Sequence[str],
    tick: Callable[[int], None],
    choose: Callable[[list[int]], list[LogitsProcessor]],
) -> list[Continuation]:
    """`choose` returns the logits processors that make the wanted token of each row of a batch the most likely one."""
    found: dict[int, Continuation] = {}

    def run(batch: list[int]) -> None:
        batch_end = _BatchEnd(subject, [prompts[i] for i in batch], stop, lambda: tick(len(found)))
        outputs = _generate(subject, batch_end, new_tokens, choose(batch))
        found.update(zip(batch, outputs, strict=True))

    lengths = [len(prompt) + new_tokens for prompt in prompts]
    in_batches(lengths, subject.token_budget, run, tick)
    return [found[i] for i in range(len(prompts))]


def _generate(
    subject: Subject, batch_end: "_BatchEnd", new_tokens: int, choose: Sequence[LogitsProcessor]
) -> list[Continuation]:
    ids, mask = batch_end.inputs()
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=subject.padding_id,
        eos_token_id=subject.eos_ids or None,
    )
    model: Any = subject.model
    with torch.inference_mode(), _own_settings_hidden(model):
        output: Tensor = model.generate(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            generation_config=settings,
            logits_processor=LogitsProcessorList([_Finite(batch_end), *choose]),
            stopping_criteria=StoppingCriteriaList([batch_end]),
        )
    lengths, finite = batch_end.lengths.tolist(), (~batch_end.broken).tolist()
    rows = output[:, ids.shape[1] :].tolist()
    return [Continuation(row[:length], ok) for row, length, ok in zip(rows, lengths, finite, strict=True)]


@contextmanager
def _own_settings_hidden(model: PreTrainedModel) -> Iterator[None]:
    """Hide the checkpoint's GenerationConfig, with which transformers would complete an explicit one."""
    own = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = own


class _BatchEnd(StoppingCriteria):
    """Watches a batch being generated: ends rows, notes their lengths, and lets the caller stop."""

    def __init__(
        self, subject: Subject, prompts: Sequence[Sequence[int]], stop: Sequence[str], tick: Callable[[], None]
    ) -> None:
        self.subject, self.prompts, self.stop, self.tick = subject, prompts, stop, tick
        device = subject.device
        self.eos = torch.tensor(subject.eos_ids, device=device, dtype=torch.long)
        self.width = max(map(len, prompts))
        self.ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        self.broken = torch.zeros_like(self.ended)
        self.lengths = torch.zeros(len(prompts), dtype=torch.long, device=device)

    def inputs(self) -> tuple[Tensor, Tensor]:
        """(ids, attention mask), [batch, longest prompt], padded on the left."""
        ids = torch.full((len(self.prompts), self.width), self.subject.padding_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(self.prompts):
            ids[row, self.width - len(prompt) :] = torch.tensor(prompt)
            mask[row, self.width - len(prompt) :] = 1
        return ids.to(self.subject.device), mask.to(self.subject.device)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        self.tick()
        self.lengths += ~self.ended
        self.ended |= torch.isin(input_ids[:, -1], self.eos) | self.broken
        if self.stop:
            for row in (~self.ended).nonzero()[:, 0].tolist():
                text = self.subject.decode(input_ids[row, self.width :].tolist())
                self.ended[row] = any(word in text for word in self.stop)
        return self.ended


class _Finite(LogitsProcessor):
    """Notes the rows whose logits are NaN or +inf, and keeps their arg-max defined."""

    def __init__(self, batch_end: _BatchEnd) -> None:
        self.batch_end = batch_end

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        bad = torch.isnan(scores).any(dim=1) | (scores == torch.inf).any(dim=1) | ~torch.isfinite(scores).any(dim=1)
        self.batch_end.broken |= bad & ~self.batch_end.ended
        return torch.where(bad[:, None], torch.zeros_like(scores), scores)


class _Drawn(LogitsProcessor):
    """Leaves only the token that each row's next number draws."""

    def __init__(self, draws: NDArray[np.float64], temperature: float) -> None:
        self.draws, self.temperature, self.step = torch.from_numpy(draws), temperature, 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        cumulated = (scores.cpu().double() / self.temperature).softmax(dim=1).cumsum(dim=1)
        draw = self.draws[:, self.step, None] * cumulated[:, -1:]
        self.step += 1
        tokens = torch.searchsorted(cumulated, draw, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens.to(scores.device), 0.0)
