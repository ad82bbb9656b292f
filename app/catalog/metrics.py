"""The metrics that a plan may name (MUSE, arXiv 2407.06460)."""

from collections.abc import Mapping
from typing import Literal

MetricId = Literal["verbmem", "knowmem_forget", "knowmem_retain", "privleak", "verbmem_sampled"]
METRICS: tuple[MetricId, ...] = ("verbmem", "knowmem_forget", "privleak", "knowmem_retain", "verbmem_sampled")
"""All that a plan may name, in the suite's order."""
DEFAULT_METRICS: tuple[MetricId, ...] = ("verbmem", "knowmem_forget", "privleak", "knowmem_retain")
"""MUSE's own: what a plan measures that names none."""
FORGET_METRICS: tuple[MetricId, ...] = ("verbmem", "knowmem_forget", "privleak")
"""Those that tell by themselves whether a model has forgotten."""
METRIC_NAMES: dict[MetricId, str] = {
    "verbmem": "VerbMem",
    "knowmem_forget": "KnowMem forget",
    "privleak": "PrivLeak",
    "knowmem_retain": "KnowMem retain",
    "verbmem_sampled": "VerbMem sampled",
}
NEEDS: Mapping[MetricId, tuple[str, ...]] = {
    "verbmem": ("verbmem/forget",),
    "knowmem_forget": ("knowmem/forget_qa", "knowmem/forget_qa_icl"),
    "privleak": ("privleak/forget", "privleak/holdout"),
    "knowmem_retain": ("knowmem/retain_qa", "knowmem/retain_qa_icl"),
    "verbmem_sampled": ("verbmem/forget",),
}
"""Metric -> the files that it cannot be measured without."""
