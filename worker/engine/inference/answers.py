"""What a model says after each prompt, and what it makes of given answers to it: each prompt is read once for both."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from worker.engine.inference import prompts as reading
from worker.engine.inference.batches import in_batches
from worker.engine.inference.generate import Continuation, generate, greedy, most_likely
from worker.engine.inference.likelihood import TokenScores, measured, score_tokens
from worker.engine.inference.prompts import Rows, forward
from worker.engine.inference.subject import Subject

_LONGEST = 64
"""Tokens beside the answer's own that may be read again: where the two tokenizations differ, the prompt's end."""


class Joined(NamedTuple):
    """A prompt and an answer as one sequence of tokens."""

    ids: list[int]
    answer: int
    """How many tokens at the end belong to the answer and are scored."""
    prompt_cut: bool
    answer_cut: bool
    """Whether it was cut to fit the model's window, which keeps the beginning of an answer and the end of a prompt."""


class Answers(NamedTuple):
    """Of each item: what was said, and the scores of the given answers, whose last entries are the answer's."""

    said: list[Continuation]
    given: list[list[TokenScores]]


class _Tail(NamedTuple):
    """A given answer as what follows a prompt that was read."""

    item: int
    place: int
    """Among the item's answers."""
    start: int
    """Tokens of the prompt that stand before it."""
    ids: list[int]
    """Of the token before the answer, and the answer's."""


def join(subject: Subject, prompt: str, answer: str, most: int | None = None) -> Joined:
    """Prompt and answer, tokenized together as one text.

    The answer's tokens are those after the longest prefix shared with the prompt's own tokens: a prompt's last space
    usually belongs to the answer's first token.

    Args:
        most: The most tokens of the answer that count.
    """
    before, whole = subject.encode(prompt), subject.encode(prompt + answer)
    common = next(
        (i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), min(len(before), len(whole))
    )
    head, tail = whole[:common], whole[common:][:most]
    if subject.window is None or len(head) + len(tail) <= subject.window:
        return Joined(head + tail, min(len(tail), max(0, len(head) + len(tail) - 1)), False, False)
    kept = tail[: subject.window - min(1, len(head))]
    ids = [*(subject.cut(head, subject.window - len(kept)) if head else []), *kept]
    return Joined(ids, min(len(kept), len(ids) - 1), len(ids) < len(head) + len(kept), len(kept) < len(tail))


def answers(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    given: Sequence[Sequence[Joined]],
    new_tokens: int,
    *,
    stop: Sequence[str] = (),
    tick: Callable[[int], None],
) -> Answers:
    """The greedy continuation of each prompt, and the scores of each item's given answers.

    Args:
        prompts, new_tokens, stop: As for `generate.greedy`.
        given: Of each item, its answers with the prompt as it is tokenized with them.
        tick: Called with how many prompts and answers are done; may raise to stop.
    """
    if not reading.can_share(subject):
        said = greedy(subject, prompts, new_tokens, stop=stop, tick=tick)
        flat = [answer.ids for item in given for answer in item]
        scored = iter(score_tokens(subject, flat, tick=lambda done: tick(len(prompts) + done)))
        return Answers(said, [[next(scored) for _ in item] for item in given])
    beginning = reading.common_beginning(subject, prompts)
    read = 0 if beginning is None else len(beginning.ids)
    tails = [
        [_tail(prompts[i], read, i, place, answer) for place, answer in enumerate(item)] for i, item in enumerate(given)
    ]
    longest = max((len(tail.ids) for item in tails for tail in item if tail is not None), default=0)
    room = max(new_tokens, longest)
    found: dict[int, Continuation] = {}
    scores: dict[tuple[int, int], TokenScores] = {}

    def run(batch: list[int]) -> None:
        rows = reading.read(subject, [prompts[i] for i in batch], beginning, room)
        for place in range(max(len(tails[i]) for i in batch)):
            asked = [tails[i][place] if place < len(tails[i]) else None for i in batch]
            for tail, own in zip(asked, _score(subject, rows, asked), strict=True):
                if tail is not None and own is not None:
                    scores[tail.item, tail.place] = own
            tick(len(found) + len(scores))
        outputs = generate(subject, rows, new_tokens, stop, most_likely, lambda: tick(len(found) + len(scores)))
        found.update(zip(batch, outputs, strict=True))

    lengths = [len(prompt) + room for prompt in prompts]
    in_batches(lengths, subject.token_budget, run, lambda done: tick(len(found) + len(scores)))
    # Answers that do not follow their prompt as it was read, because the window cut one of them.
    apart = [(i, place) for i, item in enumerate(tails) for place, tail in enumerate(item) if tail is None]
    done = len(found) + len(scores)
    alone = score_tokens(subject, [given[i][place].ids for i, place in apart], tick=lambda more: tick(done + more))
    scores.update(zip(apart, alone, strict=True))
    return Answers(
        [found[i] for i in range(len(prompts))],
        [[scores[i, place] for place in range(len(item))] for i, item in enumerate(given)],
    )


def _tail(prompt: Sequence[int], read: int, item: int, place: int, answer: Joined) -> _Tail | None:
    ids, first = answer.ids, len(answer.ids) - answer.answer
    common = next((i for i, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b), min(len(prompt), len(ids)))
    start = min(common, first) - 1
    if start < read or first - start > _LONGEST or not answer.answer:
        return None
    return _Tail(item, place, start, ids[start:])


@torch.inference_mode()
def _score(subject: Subject, rows: Rows, tails: Sequence[_Tail | None]) -> list[TokenScores | None]:
    """The scores of each row's tail; the rows are then as they were."""
    longest = max((len(tail.ids) for tail in tails if tail is not None), default=0)
    if not longest:
        return [None for _ in tails]
    ids = torch.full((len(tails), longest), subject.padding_id, dtype=torch.long)
    starts = torch.zeros(len(tails), dtype=torch.long)
    for row, tail in enumerate(tails):
        if tail is not None:
            ids[row, : len(tail.ids)] = torch.tensor(tail.ids)
            starts[row] = tail.start
    ids, starts = ids.to(subject.device), starts.to(subject.device)
    mask = rows.mask[:, : rows.width + longest].clone()
    columns = torch.arange(rows.width, device=subject.device)[None]
    # Of the prompt, what comes after the tail's beginning is not there for it.
    mask[:, : rows.width] *= columns < (rows.width - rows.lengths + starts)[:, None]
    logits = forward(
        subject,
        ids,
        attention_mask=mask,
        position_ids=starts[:, None] + torch.arange(longest, device=subject.device),
        past_key_values=rows.cache,
        use_cache=True,
        keep=longest,
    )
    rows.cache.cut(rows.width)
    own = [slice(0, 0 if tail is None else len(tail.ids) - 1) for tail in tails]
    scored = measured(logits[:, :-1], ids[:, 1:], own)
    return [None if tail is None else scores for tail, scores in zip(tails, scored, strict=True)]
