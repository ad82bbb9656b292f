"""MUSE's published evaluation loop: what a user would run instead of Lethe.

Batch 1, the few-shot prompt computed anew for each question, every token's probability taken out by itself, every text
passed twice (as it is and in lower case), all by-products computed. Source: muse_bench metrics/verbmem.py, knowmem.py,
privleak.py. Shares no code with the engine.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from rouge_score.rouge_scorer import RougeScorer

from tests.support.engine.plain import clean

STOP = ("\n\n", "\nQuestion", "Question:")


def verbmem(model: Any, tokenizer: Any, items: Sequence[tuple[str, str]]) -> list[float]:
    """ROUGE-L F1 of each passage's continuation."""
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    scores = []
    for prompt, truth in items:
        said = _generate(model, tokenizer, prompt, 128)
        true = _decode(tokenizer, tokenizer(truth).input_ids[:128])
        scores.append(float(scorer.score(true, said)["rougeL"].fmeasure))
    return scores


def knowmem(
    model: Any, tokenizer: Any, items: Sequence[tuple[str, str]], shots: Sequence[tuple[str, str]]
) -> list[float]:
    """ROUGE-L F1 of each question's answer."""
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    few = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in shots)
    scores = []
    for question, answer in items:
        said = _generate(model, tokenizer, f"{few}Question: {question}\nAnswer: ", 32)
        for word in STOP:
            said = said.split(word)[0]
        scores.append(float(scorer.score(answer, said)["rougeL"].fmeasure))
    return scores


@torch.no_grad()
def privleak(model: Any, tokenizer: Any, texts: Sequence[str]) -> list[float]:
    """Min-40 % of each text, with all that the published code computes beside it."""
    found = []
    for text in texts:
        loss, probabilities = _likelihood(model, tokenizer, text)
        lower, _ = _likelihood(model, tokenizer, text.lower())
        zlib_ratio = loss / len(zlib.compress(text.encode()))
        by_percent = {}
        for ratio in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
            least = np.sort(probabilities)[: int(len(probabilities) * ratio)]
            by_percent[ratio] = -float(np.mean(least))
        assert all(np.isfinite([lower, zlib_ratio]))
        found.append(by_percent[0.4])
    return found


@torch.no_grad()
def _generate(model: Any, tokenizer: Any, prompt: str, new_tokens: int) -> str:
    ids = tokenizer(prompt, return_tensors="pt").input_ids.to(model.device)
    # Without a mask, transformers would take the tokenizer's first token for padding where they share an id.
    mask = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
    return _decode(tokenizer, out[0, ids.shape[1] :].tolist())


def _decode(tokenizer: Any, ids: list[int]) -> str:
    # What clean_up_tokenization_spaces did before transformers 5, when the published scores were made.
    return clean(str(tokenizer.decode(ids, skip_special_tokens=True)))


def _likelihood(model: Any, tokenizer: Any, text: str) -> tuple[float, list[float]]:
    ids = tokenizer(text, return_tensors="pt").input_ids.to(model.device)
    out = model(ids, labels=ids)
    log_probs = torch.nn.functional.log_softmax(out.logits, dim=-1)
    probabilities = []
    for place, token in enumerate(ids[0][1:]):
        probabilities.append(log_probs[0, place, token].item())
    return float(out.loss), probabilities
