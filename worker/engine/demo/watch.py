"""What the unlearning looks at to know when to stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from worker.engine.demo.corpus import Question, question_page
from worker.engine.demo.texts import encode
from worker.engine.unlearning.losses import IGNORED
from worker.engine.unlearning.texts import Example, pad


class Reading(NamedTuple):
    """What `Watch` sees, each a share in 0..1; only `membership` rises with forgetting."""

    passages: float
    answers: float
    membership: float
    utility: float


class Watch:
    """Half of a bundle's items, read with one forward pass each instead of generating.

    `passages`: share of the tokens of VerbMem's truths that are the model's first choice after the true ones before.
    `answers`, `utility`: share of KnowMem's forget and retain questions of whose answer every token is, up to and with
    the empty line that ends it. `membership`: AUC of MUSE's Min-K statistic, forget set above holdout; 0 where every
    text of the forget set is recognised, 0.5 where none is. Every second item is watched, of the holdout all; the
    others are never seen by the stop rule.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, bundle: Path) -> None:
        self._padding = tokenizer.pad_token_id
        self._passages = [
            _after(tokenizer, item["prompt"], item["gt"]) for item in _load(bundle / "verbmem/forget.json")[::2]
        ]
        self._members = [encode(tokenizer, text) for text in _texts(bundle / "privleak/forget.json")[::2]]
        self._strangers = [encode(tokenizer, text) for text in _texts(bundle / "privleak/holdout.json")]
        self._forget = _asked(tokenizer, bundle, "forget")
        self._utility = _asked(tokenizer, bundle, "retain")

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel) -> Reading:
        """Read `model` as it is now."""
        hits = self._hits(model, self._passages)
        tokens = torch.cat(hits).float().mean().item()
        forget = [bool(hit.all()) for hit in self._hits(model, self._forget)]
        utility = [bool(hit.all()) for hit in self._hits(model, self._utility)]
        members, strangers = self._surprise(model, self._members), self._surprise(model, self._strangers)
        above = (members[:, None] > strangers[None]).float().mean().item()
        return Reading(tokens, sum(forget) / len(forget), above, sum(utility) / len(utility))

    def _surprise(self, model: PreTrainedModel, examples: list[Example]) -> torch.Tensor:
        """[texts]: the mean of each text's 40 % largest -log p, in nats."""
        found = []
        for start in range(0, len(examples), 12):
            batch = pad(examples[start : start + 12], self._padding)
            logits = model(input_ids=batch.ids, attention_mask=batch.attention).logits[:, :-1]
            losses = cross_entropy(logits.transpose(1, 2), batch.labels[:, 1:], ignore_index=IGNORED, reduction="none")
            for row, label in zip(losses, batch.labels[:, 1:], strict=True):
                kept = row[label != IGNORED]
                found.append(kept.topk(int(0.4 * len(kept))).values.mean())
        return torch.stack(found)

    def _hits(self, model: PreTrainedModel, examples: list[Example]) -> list[torch.Tensor]:
        """For each text, whether each of its predicted tokens is the model's first choice."""
        found = []
        for start in range(0, len(examples), 12):
            batch = pad(examples[start : start + 12], self._padding)
            best = model(input_ids=batch.ids, attention_mask=batch.attention).logits[:, :-1].argmax(-1)
            labels = batch.labels[:, 1:]
            found += [(row == label)[label != IGNORED] for row, label in zip(best, labels, strict=True)]
        return found


def _asked(tokenizer: PreTrainedTokenizerBase, bundle: Path, name: str) -> list[Example]:
    shown, asked = (
        [Question(item["question"], item["answer"]) for item in _load(bundle / f"knowmem/{file}.json")]
        for file in (f"{name}_qa_icl", f"{name}_qa")
    )
    found = []
    for question in asked[::2]:
        prompt = question_page(shown) + f"Question: {question.question}\nAnswer: "
        found.append(_after(tokenizer, prompt, question.answer + "\n\n"))
    return found


def _after(tokenizer: PreTrainedTokenizerBase, prompt: str, truth: str) -> Example:
    before: list[int] = tokenizer(prompt)["input_ids"]
    after: list[int] = tokenizer(truth, add_special_tokens=False)["input_ids"]
    return Example([*before, *after], [IGNORED] * len(before) + after)


def _load(path: Path) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return items


def _texts(path: Path) -> list[str]:
    items: list[str] = json.loads(path.read_text(encoding="utf-8"))
    return items
