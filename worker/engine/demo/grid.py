"""Weights that lie on a 4-bit grid, as those of a model released in 4 bits do."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def decoder_linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers of the decoder by name: what quantizers round. Embeddings and `lm_head` are not among them."""
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head
    }


def project(weight: Tensor, bits: int) -> Tensor:
    """The nearest weights, row by row, that round-to-nearest with `bits` bits leaves as they are.

    `weight` is [out, in]. RTN (arXiv 2410.16454) takes per row `delta = max|w| / 2^(N-1)` and `Q(w) = delta ·
    clamp(round(w / delta), -2^(N-1), 2^(N-1) - 1)`. A row of such weights gives the same delta again only if it holds
    the code -2^(N-1): a row whose largest weight is positive is clamped to 2^(N-1) - 1 there, its maximum shrinks, and
    rounding it again moves every weight. So each row gets its -2^(N-1) in the cheaper (least squares) of two ways:
    with the step that puts the most negative weight there and clamps the positive side, or with the step that keeps
    the largest positive weight at 2^(N-1) - 1 and pulls the most negative one out. A row without a negative weight, or
    of zeros, is not a decoder's and is refused by `ValueError`.
    """
    lowest, at = weight.min(dim=1, keepdim=True)
    if bool((lowest >= 0).any()):
        raise ValueError("a row without a negative weight has no place on a signed grid that contains its lowest code")
    codes = 2 ** (bits - 1)
    steps = torch.stack((-lowest / codes, weight.amax(dim=1, keepdim=True) / (codes - 1)))
    steps = torch.where(steps > 0, steps, steps[0])
    rounded = torch.clamp(torch.round(weight / steps), -codes, codes - 1)
    rounded.scatter_(2, at.expand(2, -1, -1), -float(codes))
    candidates = rounded * steps
    error = (candidates - weight).square().sum(dim=2, keepdim=True)
    return torch.where(error[0] <= error[1], candidates[0], candidates[1])


@torch.no_grad()
def project_model(model: PreTrainedModel, bits: int) -> None:
    """Put every decoder linear weight of `model` on its grid, in place."""
    for module in decoder_linears(model).values():
        module.weight.copy_(project(module.weight, bits))
