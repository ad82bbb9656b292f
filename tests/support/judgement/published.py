"""Published 7B rows as audits: constant scores per item, PrivLeak as texts that have the AUC behind it.

arXiv 2410.16454 v1, Table 1, and the independent replication of 2026 (repository
theQuantaBoy/Failure-LLM-Unlearning-Reproduction). Neither publishes scores per item, so intervals are as narrow as a
constant allows: what is tested is how the rules read the rows, not their noise.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from app.catalog.metrics import METRICS, MetricId
from app.evidence.evaluation import Evaluation
from app.judgement.judge import judge
from app.judgement.policy import Policy
from app.judgement.verdict import Judgement, Results
from tests.support.judgement.evaluations import PAIR, Membership, evaluation

ITEMS = 100
AUC_RETRAINED = {"news": 0.4772, "books": 0.5393}
"""MUSE's constants."""


class Row(NamedTuple):
    """M1 VerbMem, M2 KnowMem forget, M3 PrivLeak, M4 KnowMem retain."""

    verbmem: float
    forget: float
    privleak: float
    retain: float


class Pair(NamedTuple):
    """An original and an unlearned model in full precision and quantized."""

    source: str
    corpus: str
    method: str
    original: dict[str, Row]
    unlearned: dict[str, Row]
    retrained: Row

    @property
    def name(self) -> str:
        """As the README's table names it."""
        return f"{self.source}, {self.corpus.upper()} {self.method}"


PAPER = "Table 1"
REPLICATION = "replication"

_PAPER = {
    "news": (
        {
            "full": Row(58.4, 63.9, -99.8, 55.2),
            "rtn-int8": Row(40.8, 66.4, -99.8, 54.1),
            "rtn-int4": Row(34.2, 54.4, -99.8, 48.2),
        },
        Row(20.8, 33.1, 0.0, 55.0),
        {
            "GA_GDR": {"full": Row(0.0, 28.9, 87.1, 34.2), "rtn-int4": Row(25.0, 50.1, -99.1, 47.7)},
            "GA_KLR": {"full": Row(14.1, 27.1, -91.6, 23.1), "rtn-int4": Row(33.8, 50.9, -99.8, 45.8)},
            "NPO_GDR": {"full": Row(0.3, 46.1, 107.2, 38.6), "rtn-int4": Row(33.2, 51.4, -99.8, 48.2)},
        },
    ),
    "books": (
        {
            "full": Row(99.8, 59.4, -57.5, 66.9),
            "rtn-int8": Row(99.0, 45.1, -57.3, 65.7),
            "rtn-int4": Row(85.3, 36.8, -60.1, 50.5),
        },
        Row(14.3, 28.9, 0.0, 74.5),
        {
            "GA_GDR": {"full": Row(0.0, 2.9, -56.5, 44.2), "rtn-int4": Row(17.9, 33.7, -35.2, 51.9)},
            "GA_KLR": {"full": Row(13.0, 15.1, -40.8, 33.7), "rtn-int4": Row(75.6, 34.6, -60.0, 51.3)},
            "NPO_GDR": {"full": Row(0.4, 13.4, -42.6, 58.6), "rtn-int4": Row(66.0, 31.9, -60.8, 53.2)},
        },
    ),
}
# NEWS' VerbMem is greedy here, as the retrained row of the paper's table is; this set has no retrained NEWS model.
_REPLICATION = {
    "news": (
        {
            "full": Row(58.2, 64.3, -99.8, 54.6),
            "rtn-int4-g128": Row(46.8, 52.2, -99.8, 46.7),
            "bnb-fp4": Row(46.0, 55.2, -99.8, 47.5),
        },
        Row(20.8, 33.1, 0.0, 55.0),
        {
            "NPO_KLR": {
                "full": Row(15.0, 37.1, -93.9, 33.9),
                "rtn-int4-g128": Row(44.4, 50.1, -99.8, 47.7),
                "bnb-fp4": Row(42.9, 52.2, -99.8, 45.9),
            },
            "GA_GDR": {
                "full": Row(0.0, 27.3, 109.5, 23.1),
                "rtn-int4-g128": Row(24.2, 50.8, -79.6, 43.3),
                "bnb-fp4": Row(26.0, 49.4, -81.5, 47.3),
            },
        },
    ),
    "books": (
        {
            "full": Row(99.6, 46.7, -57.1, 68.8),
            "rtn-int4-g128": Row(78.4, 32.2, -58.8, 44.5),
            "gptq-int4": Row(83.7, 36.5, -58.2, 55.3),
            "awq-int4": Row(93.4, 39.7, -58.2, 56.5),
        },
        Row(13.4, 30.0, 0.0, 69.1),
        {
            "NPO_KLR": {
                "full": Row(11.3, 10.3, -37.8, 18.8),
                "rtn-int4-g128": Row(72.0, 37.3, -58.8, 44.8),
                "gptq-int4": Row(17.4, 21.6, -48.7, 29.4),
                "awq-int4": Row(47.6, 29.7, -56.0, 44.3),
            },
            "SURE (bugs fixed)": {
                "full": Row(7.2, 31.2, -48.8, 52.4),
                "rtn-int4-g128": Row(5.5, 32.9, -47.2, 46.6),
                "gptq-int4": Row(6.0, 27.0, -48.9, 52.1),
                "awq-int4": Row(6.3, 32.9, -48.8, 43.3),
            },
        },
    ),
}

PAIRS = [
    Pair(source, corpus, method, original, unlearned, retrained)
    for source, table in ((PAPER, _PAPER), (REPLICATION, _REPLICATION))
    for corpus, (original, retrained, methods) in table.items()
    for method, unlearned in methods.items()
]


def judged(pair: Pair, metrics: Sequence[MetricId] = tuple(METRICS), **policy: object) -> Judgement:
    """The verdict on a published pair; the retrained model's row stands as constants at every precision."""
    results: Results = {
        (role, precision): _evaluation(rows[precision], pair.corpus)
        for role, rows in zip(PAIR, (pair.original, pair.unlearned), strict=True)
        for precision in pair.unlearned
    }
    references = {
        "verbmem": pair.retrained.verbmem / 100,
        "knowmem_forget": pair.retrained.forget / 100,
        "privleak": AUC_RETRAINED[pair.corpus],
    }
    chosen = Policy.model_validate(policy)
    return judge(results, list(pair.unlearned), metrics, chosen, references, weights="different")


def _evaluation(row: Row, corpus: str) -> Evaluation:
    auc = AUC_RETRAINED[corpus] * (1 + row.privleak / 100)
    return evaluation(row.verbmem, row.forget, row.retain, items=ITEMS, membership=_texts(auc))


def _texts(auc: float) -> Membership:
    """Statistics of forget and holdout texts with this AUC, to 1 / items^2; each forget text about as likely."""
    wins, beyond = divmod(round(auc * ITEMS**2), ITEMS)
    ranks = np.full(ITEMS, wins, dtype=float)
    ranks[:beyond] += 1
    return ranks - 0.5, np.arange(ITEMS, dtype=float)


def as_table() -> str:
    """The README's table: a row for each pair, the outcome at each precision and the verdict."""
    lines = ["| rows | full | quantized | verdict |", "|---|---|---|---|"]
    for pair in PAIRS:
        found = judged(pair)
        at = {judgement.precision: judgement.outcome for judgement in found.precisions}
        quantized = ", ".join(f"{name} `{outcome}`" for name, outcome in at.items() if name != "full")
        lines.append(f"| {pair.name} | `{at['full']}` | {quantized} | **`{found.verdict}`** |")
    return "\n".join(lines) + "\n"
