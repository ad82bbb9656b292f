"""The losses of unlearning, in the symbols of arXiv 2410.16454 (NPO: arXiv 2404.05868).

An unlearned model minimises, over the forget set D_forget and the retain set D_retain,

    E_{(x_f, y_f) in D_forget} [ L_forget(y_f | x_f; θ) ]  +  α · E_{(x_r, y_r) in D_retain} [ L_retain(y_r | x_r; θ) ]

where x is what the model reads and y what it is to predict. Here x and y are told apart by the labels: a position
whose label is `IGNORED` belongs to x (a prompt, padding) and carries no loss.
"""

from __future__ import annotations

from typing import Final, Literal

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


def sequence_log_prob(logits: Tensor, labels: Tensor) -> Tensor:
    """log p_θ(y | x) = Σ_t log p_θ(y_t | x, y_<t), in nats: [batch], from normalised probabilities."""
    loss = functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none"
    )
    return -loss.sum(dim=1)


def npo(
    logits: Tensor, labels: Tensor, reference: Tensor, beta: float, ratio: Literal["sum", "mean"] = "sum"
) -> Tensor:
    """NPO: L_forget = -(2/β) · E_{(x_f, y_f)} [ log σ( -β · log( p_θ(y_f | x_f) / p_o(y_f | x_f) ) ) ].

    `reference` is log p_o(y_f | x_f) of the original, [batch], in nats (`sequence_log_prob` at θ_o). With `ratio`
    "mean", the log-ratio is divided by |y_f|: not NPO as published, but where texts are long the published one's
    gradient vanishes as soon as the whole text, rather than each token, has become unlikely.
    """
    log_ratio = sequence_log_prob(logits, labels) - reference
    if ratio == "mean":
        log_ratio = log_ratio / torch.clamp((labels[:, 1:] != IGNORED).sum(dim=1), min=1)
    return -(2 / beta) * functional.logsigmoid(-beta * log_ratio).mean()


def kl_retain(logits: Tensor, original: Tensor, labels: Tensor) -> Tensor:
    """KLR: L_retain = E_{(x_r, y_r)} [ 1/|y| · Σ_t KL( p_o(· | x, y_<t) ‖ p_θ(· | x, y_<t) ) ], in nats per token.

    `original` is the original's logits on the same tokens, [batch, tokens, vocabulary]. Both sides are normalised
    first. The mean is over a text's predicted tokens and over the texts then, as in `cross_entropy`: it grows neither
    with the length of a text nor with the vocabulary.
    """
    predicted = labels[:, 1:] != IGNORED
    p_theta = functional.log_softmax(logits[:, :-1].float(), dim=2)
    p_o = functional.log_softmax(original[:, :-1].float(), dim=2)
    divergence = functional.kl_div(p_theta, p_o, reduction="none", log_target=True).sum(dim=2) * predicted
    return (divergence.sum(dim=1) / torch.clamp(predicted.sum(dim=1), min=1)).mean()


def unlearning_loss(forget: Tensor, retain: Tensor, alpha: float) -> Tensor:
    """L_forget + α · L_retain, both scalars: GA with GDR is `unlearning_loss(gradient_ascent(…),
    gradient_descent_retain(…), α)`."""
    return forget + alpha * retain
