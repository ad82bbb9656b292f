"""The metrics as a plain loop, straight from the definitions: one prompt at a time, no padding, no cache.

Slow and obvious on purpose; shares no code with the engine.
"""

import math
import zlib
from typing import Any

import torch
from rouge_score.rouge_scorer import RougeScorer


def clean(text: str) -> str:
    for a, b in [(" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m")]:
        text = text.replace(a, b)
    return text.replace(" 's", "'s").replace(" 've", "'ve").replace(" 're", "'re")


@torch.no_grad()
def continue_greedily(model: Any, ids: list[int], new_tokens: int, eos: int = 1) -> list[int]:
    out: list[int] = []
    for _ in range(new_tokens):
        logits = model(torch.tensor([ids + out]), use_cache=False).logits
        out.append(int(logits[0, -1].argmax()))
        if out[-1] == eos:
            break
    return out


def rouge(reference: str, text: str) -> float:
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    return float(scorer.score(reference, text)["rougeL"].fmeasure)


def verbmem(model: Any, tokenizer: Any, items: list[dict[str, str]]) -> list[float]:
    scores = []
    for item in items:
        out = continue_greedily(model, tokenizer(item["prompt"]).input_ids, 128)
        truth = tokenizer(item["gt"]).input_ids[:128]
        texts = [clean(tokenizer.decode(ids, skip_special_tokens=True)) for ids in (truth, out)]
        scores.append(rouge(*texts))
    return scores


def knowmem_outputs(model: Any, tokenizer: Any, items: list[dict[str, str]], icl: list[dict[str, str]]) -> list[str]:
    outputs = []
    for item in items:
        prompt = ""
        for shot in icl:
            prompt += f"Question: {shot['question']}\nAnswer: {shot['answer']}\n\n"
        prompt += f"Question: {item['question']}\nAnswer: "
        out = continue_greedily(model, tokenizer(prompt).input_ids, 32)
        text = clean(tokenizer.decode(out, skip_special_tokens=True))
        for stop in ["\n\n", "\nQuestion", "Question:"]:
            text = text.split(stop)[0]
        outputs.append(text)
    return outputs


@torch.no_grad()
def text_statistics(model: Any, tokenizer: Any, text: str) -> dict[str, float]:
    ids = tokenizer(text).input_ids
    log_probs = torch.log_softmax(model(torch.tensor([ids]), use_cache=False).logits[0].double(), dim=-1)
    values = [float(log_probs[i, token]) for i, token in enumerate(ids[1:])]
    loss = -sum(values) / len(values)
    found = {"loss": loss, "zlib": loss / len(zlib.compress(bytes(text, "utf-8"))), "tokens": len(values)}
    for ratio in [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]:
        k = max(1, int(len(values) * ratio))
        found[str(round(ratio * 100))] = -math.fsum(sorted(values)[:k]) / k
    return found


@torch.no_grad()
def memorization(
    model: Any, tokenizer: Any, prompt: str, answer: str, most: int | None = None
) -> tuple[float, float, float]:
    """(exact memorization, extraction strength, probability) of an answer as it follows its prompt, prefix by prefix.

    The probability is the geometric mean over the answer's tokens.
    """
    start, whole = tokenizer(prompt).input_ids, tokenizer(prompt + answer).input_ids
    n = 0
    while n < len(start) and start[n] == whole[n]:
        n += 1
    truth = whole[n:][:most]
    hits, product = [], 0.0
    for i in range(len(truth)):
        logits = model(torch.tensor([whole[: n + i]]), use_cache=False).logits[0, -1].double()
        hits.append(int(logits.argmax()) == truth[i])
        product += float(torch.log_softmax(logits, dim=-1)[truth[i]])
    k = min(k for k in range(len(truth) + 1) if all(hits[k:]))
    return sum(hits) / len(hits), 1 - k / len(truth), math.exp(product / len(truth))
