"""Prompts as a model has read them: each distinct one once, and what all of a metric's prompts begin with only once.

Prompts are read in small groups, padded on the right and without a mask: what comes later changes nothing before it,
and without a mask attention takes its fastest path.
"""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from worker.engine.inference.cache import RowCache
from worker.engine.inference.subject import Subject

_TOGETHER = {"cuda": 8192, "cpu": 512}
"""Tokens that are read at once, by kind of device: more of them need more memory and are no faster."""
_WORTH_SHARING = 16
"""Tokens: a shorter common beginning is read with every prompt."""


class Beginning(NamedTuple):
    """What all prompts begin with, as the model has read it."""

    ids: list[int]
    cache: RowCache


class Rows:
    """A batch of prompts that were read, ready for what follows them."""

    def __init__(self, cache: RowCache, mask: Tensor, lengths: Tensor, logits: Tensor) -> None:
        self.cache, self.mask, self.lengths, self.logits = cache, mask, lengths, logits
        self.width = int(lengths.max())
        """Columns that the prompts take. `mask` [rows, columns]: 0 before a row's first token; `lengths` [rows];
        `logits` [rows, vocabulary], of the token after each prompt."""


def can_share(subject: Subject) -> bool:
    """Whether different tokens may follow a prompt that was read: the model attends to all that is not masked, and it
    takes the positions that it is given."""
    layers = DynamicCache(config=subject.model.config).layers
    full = all(type(layer) is DynamicLayer for layer in layers)
    return full and not subject.reads_alone and _takes(subject.model, "position_ids")


@torch.inference_mode()
def common_beginning(subject: Subject, prompts: Sequence[Sequence[int]]) -> Beginning | None:
    """What several prompts begin with, read once; None where that is not worth it."""
    distinct = {tuple(prompt) for prompt in prompts}
    if len(distinct) < 2:
        return None
    first, last = min(distinct), max(distinct)
    # At least one token of each prompt is read with it: its logits are wanted.
    most = min(map(len, distinct)) - 1
    shared = next((i for i in range(most) if first[i] != last[i]), most)
    if shared < _WORTH_SHARING:
        return None
    ids = list(first[:shared])
    cache = RowCache(1, shared)
    forward(subject, torch.tensor([ids], device=subject.device), past_key_values=cache, use_cache=True, keep=1)
    return Beginning(ids, cache)


@torch.inference_mode()
def read(subject: Subject, prompts: Sequence[Sequence[int]], beginning: Beginning | None, room: int) -> Rows:
    """Read a batch of prompts.

    Args:
        beginning: What all of them begin with, if that was read before.
        room: Columns to keep for what follows.
    """
    if beginning is not None:
        return _read_on(subject, prompts, beginning, room)
    distinct: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        distinct.setdefault(tuple(prompt), []).append(row)
    width = max(map(len, prompts))
    cache = RowCache(len(prompts), width + room)
    logits: list[Tensor | None] = [None] * len(prompts)
    for group in _groups(sorted(distinct, key=len), _TOGETHER.get(subject.device.type, _TOGETHER["cpu"])):
        longest = max(map(len, group))
        ids = torch.full((len(group), longest), subject.padding_id, dtype=torch.long)
        for row, prompt in enumerate(group):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        few = RowCache(len(group), longest)
        wanted = sorted({len(prompt) - 1 for prompt in group})
        keep = 1 if wanted == [longest - 1] else torch.tensor(wanted, device=subject.device)
        found = forward(subject, ids.to(subject.device), past_key_values=few, use_cache=True, keep=keep)
        for row, prompt in enumerate(group):
            for place in distinct[prompt]:
                cache.put(place, few, row, len(prompt), width)
                logits[place] = found[row, wanted.index(len(prompt) - 1)]
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    mask = (torch.arange(width + room)[None] >= width - lengths[:, None]).long()
    stacked = torch.stack([row for row in logits if row is not None])
    return Rows(cache, mask.to(subject.device), lengths.to(subject.device), stacked)


def _read_on(subject: Subject, prompts: Sequence[Sequence[int]], beginning: Beginning, room: int) -> Rows:
    """Read what comes after the beginning, all rows at once. Padding stands between the two."""
    start = len(beginning.ids)
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width - start), subject.padding_id, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt[start:])
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    columns = torch.arange(width + room)[None]
    mask = ((columns < start) | (columns >= start + width - lengths[:, None])).long().to(subject.device)
    positions = (columns[:, start:width] - (width - lengths[:, None])).clamp(min=0).to(subject.device)
    cache = RowCache.after(beginning.cache, len(prompts), width + room)
    logits = forward(
        subject,
        ids.to(subject.device),
        attention_mask=mask[:, :width],
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        keep=1,
    )
    return Rows(cache, mask, lengths.to(subject.device), logits[:, -1])


def forward(subject: Subject, ids: Tensor, *, keep: "int | Tensor", **kwargs: Any) -> Tensor:
    """Logits [rows, kept, vocabulary] of some positions: the last `keep`, or those with these indices."""
    model: Any = subject.model
    if _takes(model, "logits_to_keep"):
        found: Tensor = model(input_ids=ids, logits_to_keep=keep, **kwargs).logits
        return found
    found = model(input_ids=ids, **kwargs).logits
    return found[:, -keep:] if isinstance(keep, int) else found[:, keep]


def _takes(model: PreTrainedModel, argument: str) -> bool:
    return argument in inspect.signature(model.forward).parameters


def _groups(prompts: Sequence[tuple[int, ...]], most: int) -> list[list[tuple[int, ...]]]:
    """Prompts, sorted by length, in groups of at most so many tokens, padding included."""
    groups: list[list[tuple[int, ...]]] = []
    for prompt in prompts:
        if groups and (len(groups[-1]) + 1) * len(prompt) <= most:
            groups[-1].append(prompt)
        else:
            groups.append([prompt])
    return groups
