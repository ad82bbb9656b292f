"""The texts that GPTQ and AWQ read while they quantize: part of the precision, so digest and shape are reported.

The paper blames generic calibration for what a quantized model remembers again (arXiv 2410.16454, section 5), so the
bundle's own texts can be used instead.
"""

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from pydoc_data import topics
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from app.canonical import sha256
from app.catalog.frozen import Scalar
from app.catalog.quantizers import Calibration as Source
from app.catalog.quantizers import Precision
from app.errors import EvaluationFailed
from app.forget_sets.bundle import Bundle

SAMPLES: Mapping[str, int] = MappingProxyType({"gptq": 128, "awq": 32})
"""The most samples. GPTQ's paper uses 128; AWQ, which only measures magnitudes, needs 16 by its paper (section 5.3)."""
LENGTH = 512
"""The most tokens per sample: AutoAWQ's default."""
GPTQ_DAMPENING = 0.01
"""Share of the mean of the Hessian's diagonal that is added to it (GPTQ's paper, section 3.3)."""
AWQ_GRID = 20
"""Scales tried per layer (AWQ's paper, section 3.2)."""
SHORTEST = 16
"""Fewest tokens of a sample: libraries silently drop those of up to 10 (engine/README.md, "Short samples")."""


class Calibration(NamedTuple):
    """Samples of equal length, and where they come from."""

    ids: Tensor
    """[samples, length]"""
    source: Source
    digest: str
    """Over the texts, before they were tokenized: `sha256:…`."""
    seed: int
    tokenizer: Any
    """For llm-compressor, which would look for one on the hub (engine/README.md, "Looking for a processor")."""

    def parameters(self) -> dict[str, Scalar]:
        """For the report."""
        samples, length = self.ids.shape
        return {
            "calibration": self.source,
            "calibration_digest": self.digest,
            "calibration_samples": samples,
            "calibration_length": length,
            "calibration_seed": self.seed,
        }


def draw(
    precision: Precision,
    tokenizer: PreTrainedTokenizerBase,
    bundle: Bundle | None,
    *,
    file: Path | None = None,
    seed: int = 0,
    context: int = LENGTH,
) -> Calibration | None:
    """The samples for a precision; None for those that need no texts.

    Args:
        file: The operator's own texts, UTF-8, for `@file`.
        context: The most tokens that the model reads at once.

    Raises:
        EvaluationFailed: `precision_unavailable` when there is no such text, or too little of it.
    """
    if precision.calibration is None:
        return None
    found = texts(precision, bundle, file)
    digest = sha256("\0".join(found).encode())
    ids = pack(found, tokenizer, samples=SAMPLES[precision.method], length=min(LENGTH, context), seed=seed)
    if ids.shape[1] < SHORTEST:
        raise EvaluationFailed(
            "precision_unavailable",
            f"{precision.name}: its calibration texts have only {ids.shape[1]} tokens in all; {SHORTEST} are needed:"
            " use generic calibration (the name without @) or an rtn precision",
        )
    return Calibration(ids, precision.calibration, digest, seed, tokenizer)


def texts(precision: Precision, bundle: Bundle | None, file: Path | None) -> tuple[str, ...]:
    """The texts of the precision's source, at least one.

    Raises:
        EvaluationFailed: `precision_unavailable`, saying what is missing.
    """
    source = precision.calibration
    if source == "generic":
        return tuple(topics.topics[name] for name in sorted(topics.topics))
    if source == "file":
        if file is None:
            raise _missing(precision, "no file is set; start the worker with LETHE_CALIBRATION_FILE")
        try:
            content = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise _missing(precision, f"{file} cannot be read as UTF-8 text ({type(error).__name__})") from error
        found: Sequence[str] = [part for part in re.split(r"\n\s*\n", content) if part.strip()]
    else:
        found = () if bundle is None else bundle.items(f"raw/{source}")  # type: ignore[assignment]
    if not found:
        place = f"the forget set has no raw/{source}" if source != "file" else f"{file} is empty"
        raise _missing(precision, f"{place}; use another calibration")
    return tuple(found)


def pack(found: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, samples: int, length: int, seed: int) -> Tensor:
    """Texts -> [samples, length] token ids: at most this many full samples, drawn by the seed, in the texts' order.

    The texts are concatenated, because a collator that cuts to the shortest sample, or a filter of short ones, would
    throw most of them away (engine/README.md, "Short samples"). Less text than one sample makes one shorter
    sample.
    """
    stream: list[int] = []
    for text in found:
        stream += tokenizer(text, add_special_tokens=True)["input_ids"]
    length = min(length, len(stream))
    if not length:
        return torch.zeros((1, 0), dtype=torch.long)
    count = len(stream) // length
    chosen = sorted(random.Random(seed).sample(range(count), min(samples, count)))
    return torch.tensor([stream[index * length : (index + 1) * length] for index in chosen])


def _missing(precision: Precision, why: str) -> EvaluationFailed:
    return EvaluationFailed("precision_unavailable", f"{precision.name}: {why}")
