"""The losses of unlearning, in the symbols of arXiv 2410.16454.

An unlearned model minimises, over the forget set D_forget and the retain set D_retain,

    E_{(x_f, y_f) in D_forget} [ L_forget(y_f | x_f; θ) ]  +  α · E_{(x_r, y_r) in D_retain} [ L_retain(y_r | x_r; θ) ]

where x is what the model reads and y what it is to predict. Here x and y are told apart by the labels: a position
whose label is `IGNORED` belongs to x (a prompt, padding) and carries no loss.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

IGNORED: Final = -100
"""Label of a token that is read but not predicted (the convention of PyTorch and transformers)."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """L_CE(y | x; θ) = E_{(x, y)} [ -1/|y| · Σ_t log p_θ(y_t | x, y_<t) ], in nats per token.

    `logits` is [batch, tokens, vocabulary] and `labels` [batch, tokens], both of the same tokens: the logits at t
    predict the label at t + 1. The mean is over a text's predicted tokens first and over the texts then, so that a
    text counts the same whether it is long or short and whatever it is batched with. A text in which nothing is
    predicted counts 0.
    """
    predicted = labels[:, 1:]
    # The vocabulary goes to dimension 1, where cross_entropy expects the classes.
    loss = functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), predicted, ignore_index=IGNORED, reduction="none"
    )
    count = (predicted != IGNORED).sum(dim=1)
    return (loss.sum(dim=1) / torch.clamp(count, min=1)).mean()


def gradient_ascent(logits: Tensor, labels: Tensor) -> Tensor:
    """GA: L_forget(y_f | x_f; θ) = -L_CE(y_f | x_f; θ), so that a step down this loss is a step up the model's own.

    It has no lower bound: without a retain loss and a rule when to stop, it destroys the model (MUSE, arXiv
    2407.06460).
    """
    return -cross_entropy(logits, labels)


def gradient_descent_retain(logits: Tensor, labels: Tensor) -> Tensor:
    """GDR: L_retain(y_r | x_r; θ) = L_CE(y_r | x_r; θ), ordinary training on what must be kept."""
    return cross_entropy(logits, labels)


def unlearning_loss(forget: Tensor, retain: Tensor, alpha: float) -> Tensor:
    """L_forget + α · L_retain, both scalars: GA with GDR is `unlearning_loss(gradient_ascent(…),
    gradient_descent_retain(…), α)`."""
    return forget + alpha * retain
