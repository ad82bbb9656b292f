"""ROUGE-L F1 as MUSE computes it: Google's `rouge-score`, no stemming."""

from functools import cache

from rouge_score.rouge_scorer import RougeScorer


@cache
def _scorer() -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=False)


def rouge_l(reference: str, text: str) -> float:
    """F1 of the longest common subsequence of lower-cased ASCII words and numbers, 0 to 1.

    Text in other scripts has no such words and scores 0, as it does in MUSE.
    """
    return float(_scorer().score(reference, text)["rougeL"].fmeasure)
