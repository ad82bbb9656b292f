"""What the metrics measure: a model in eval mode and its tokenizer; encoding and decoding of texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.errors import CheckpointRefused
from worker.engine.checkpoint import context_window

Progress = Callable[[str, int, int], None]
"""Called with (stage, items done, items in all), often: between batches and at every generated token. May raise."""

_SPACES = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


@dataclass(frozen=True)
class Subject:
    """A model under measurement."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    token_budget: int
    """The most tokens, including padding, whose keys and values are held at once."""

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.model.device

    @property
    def window(self) -> int | None:
        """The number of tokens that fit into the model's context, None when unknown."""
        return context_window(self.model)

    @property
    def reads_alone(self) -> bool:
        """Whether texts must go through the model one by one, because its rotary frequencies follow the longest text of
        a batch ("dynamic" and "longrope" of transformers' rope types)."""
        types = (str(getattr(module, "rope_type", "")) for module in self.model.modules())
        return any("dynamic" in kind or "longrope" in kind for kind in types)

    @property
    def eos_ids(self) -> list[int]:
        """The tokens that end a generation: the checkpoint's own, else its tokenizer's."""
        for source in (self.model.generation_config, self.model.config, self.tokenizer):
            ids = getattr(source, "eos_token_id", None)
            if ids is not None:
                return [int(i) for i in (ids if isinstance(ids, Sequence) else [ids])]
        return []

    @property
    def padding_id(self) -> int:
        """Any token that the model has: padding is masked. (An added <pad> may lie outside the embeddings.)"""
        return next((i for i in self.eos_ids if i < self._embeddings), 0)

    @property
    def _embeddings(self) -> int:
        weight: Any = self.model.get_input_embeddings().weight
        return int(weight.shape[0])

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids, with the special tokens that the tokenizer adds.

        Raises:
            CheckpointRefused: `checkpoint_unsupported` when the model has no embedding for one of them.
        """
        ids: list[int] = list(self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
        if ids and max(ids) >= self._embeddings:
            raise CheckpointRefused(
                "checkpoint_unsupported",
                f"the tokenizer gives token {max(ids)}, but the model has {self._embeddings} embeddings;"
                " submit the tokenizer that belongs to it",
            )
        return ids

    def encode_prompt(self, text: str, new_tokens: int) -> tuple[list[int], bool]:
        """(ids, whether they were cut): what doesn't fit with `new_tokens` is cut from the left, after a BOS."""
        ids = self.encode(text) or [self.padding_id]
        room = max(1, self.window - new_tokens) if self.window else len(ids)
        return self.cut(ids, room), len(ids) > room

    def cut(self, ids: list[int], room: int) -> list[int]:
        """The last tokens of a prompt that fit (at least one), after its BOS if it has one."""
        if len(ids) <= room:
            return ids
        if ids[0] == self.tokenizer.bos_token_id and room > 1:
            return [ids[0], *ids[1 - room :]]
        return ids[-room:]

    def new_tokens(self, wanted: int) -> int:
        """`wanted`, or half of the context window if that leaves no room for a prompt."""
        return wanted if self.window is None or self.window > wanted else max(1, self.window // 2)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids, as MUSE decodes: without special tokens, spaces before punctuation cleaned up.

        transformers 5 ignores `clean_up_tokenization_spaces=True` for BPE tokenizers; published scores have it.
        """
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
        for pattern in _SPACES:
            text = text.replace(pattern, pattern.strip() if pattern != " ' " else "'")
        return text
