"""Batches by token budget, longest first, halved when a GPU runs out of memory."""

from collections.abc import Callable, Sequence

import torch

from app.errors import EvaluationFailed


def in_batches(
    lengths: Sequence[int], budget: int, run: Callable[[list[int]], None], done: Callable[[int], None]
) -> None:
    """Run all items in batches whose padded size stays within a budget.

    Args:
        lengths: Tokens of each item. A single item larger than the budget goes alone.
        budget: The most tokens in a batch, including padding.
        run: Called with the indices of one batch, whose items have similar lengths; stores its results itself.
        done: Called after each batch with the number of items done so far.

    Raises:
        EvaluationFailed: `out_of_memory` when one item alone doesn't fit.
    """
    waiting = _plan(lengths, budget)[::-1]
    finished = 0
    while waiting:
        batch = waiting.pop()
        try:
            run(batch)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise EvaluationFailed(
                    "out_of_memory", f"a single text of {lengths[batch[0]]} tokens does not fit into the GPU's memory"
                ) from error
            halved = True
        else:
            halved = False
            finished += len(batch)
            done(finished)
        if halved:  # outside of `except`, whose traceback keeps the tensors alive
            torch.cuda.empty_cache()
            half = (len(batch) + 1) // 2
            pieces = [items[i : i + half] for items in (batch, *waiting[::-1]) for i in range(0, len(items), half)]
            waiting = pieces[::-1]


def _plan(lengths: Sequence[int], budget: int) -> list[list[int]]:
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
