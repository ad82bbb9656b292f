"""A model whose every probability is known beforehand."""

import math
from itertools import pairwise

import torch

from tests.support.factories import VOCAB, tiny_model, tiny_tokenizer
from worker.engine.muse.subject import Subject


def bigram(table: torch.Tensor) -> Subject:
    """A real Llama whose logits after token x are `table[x]`, [384, 384], whatever came before x.

    Embeddings are one-hot, attention and feed-forward add nothing, and the output layer is the table.
    """
    model = tiny_model(hidden_size=VOCAB, num_hidden_layers=1, intermediate_size=8, rms_norm_eps=0.0)
    model.requires_grad_(False)
    layer = model.model.layers[0]
    for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
        weight.zero_()
    model.model.embed_tokens.weight.copy_(torch.eye(VOCAB))
    # The last norm makes sqrt(384) of the 1.
    model.lm_head.weight.copy_(table.T / VOCAB**0.5)
    return Subject(model, tiny_tokenizer(), 2000)


HALF = math.log(VOCAB - 1)
"""This logit over zeros gives its token a probability of one half, and each of the 383 others 1/766."""


def following(*texts: list[int]) -> torch.Tensor:
    """The table after which each token of these texts is followed by its successor in them, with probability 1/2."""
    table = torch.zeros(VOCAB, VOCAB)
    for text in texts:
        for token, after in pairwise(text):
            table[token] = 0.0
            table[token, after] = HALF
    return table
