"""Precision names: how weights can be held while a model is evaluated.

Names only, so that the API can validate a plan without torch; `worker.engine.precision` applies them.

    full
    rtn-int{8,4,3,2}[-g128|-g64|-g32|-tensor]     round to nearest, the papers' formula; per output channel by default
    gptq-int{8,4}[-g64|-g32|-channel][@source]    GPTQ (arXiv 2210.17323), in groups of 128 by default
    awq-int4[-g64|-g32|-channel][@source]         AWQ (arXiv 2306.00978), in groups of 128 by default
    mxfp4, nvfp4                                  the 4-bit floating-point formats that models ship in, weights only
    gguf-q4_0, gguf-q8_0                          llama.cpp's block formats
    bnb-{nf4,fp4}[-dq], bnb-int8                  bitsandbytes; dq: double quantization, the scales in 8 bits
    torchao-int8, torchao-int4[-g64|-g32|-channel] torchao, weights only; int4 in groups of 128 by default

GPTQ and AWQ look at texts while they quantize; `@retain`, `@forget` or `@file` says which (generic ones by default).
llama.cpp's K-quants are not here: the `gguf` package can read them, but doesn't implement how they are made.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, get_args

from app.errors import InvalidRequest

Method = Literal["full", "rtn", "gptq", "awq", "mxfp4", "nvfp4", "gguf", "bnb", "torchao"]
Granularity = Literal["channel", "tensor", "group"]

Calibration = Literal["generic", "retain", "forget", "file"]
"""Which texts GPTQ and AWQ look at: Python's own documentation, the bundle's raw/retain or raw/forget, or the
operator's file (LETHE_CALIBRATION_FILE)."""
SOURCES: tuple[Calibration, ...] = get_args(Calibration)

LIBRARIES: Mapping[Method, str] = MappingProxyType(
    {
        "gptq": "llmcompressor",
        "awq": "llmcompressor",
        "mxfp4": "llmcompressor",
        "nvfp4": "llmcompressor",
        "gguf": "gguf",
        "bnb": "bitsandbytes",
        "torchao": "torchao",
    }
)
"""Method -> the library that applies it, as it is imported; the others are Lethe's own."""


@dataclass(frozen=True)
class Precision:
    """One way to hold weights."""

    name: str
    method: Method
    bits: int | None
    """Bits per quantized weight; None for full precision."""
    granularity: Granularity | None
    """What shares one scale: an output channel (a row of the weight), the whole tensor, or a group within a row."""
    group_size: int | None = None
    calibration: Calibration | None = None
    """Which texts the method looks at; None for those that look at the weights alone."""
    double_quantization: bool = False
    """Whether the scales are quantized too (QLoRA, arXiv 2305.14314, section 3)."""

    @property
    def requires(self) -> str | None:
        """The library that must be there to apply it."""
        return LIBRARIES.get(self.method)


FULL = Precision("full", "full", None, None)
BNB_BLOCK = 64
"""Weights that share a scale in bitsandbytes' 4-bit types."""


def _known() -> dict[str, Precision]:
    found = [FULL]
    for bits in (8, 4, 3, 2):
        name = f"rtn-int{bits}"
        found.append(Precision(name, "rtn", bits, "channel"))
        found += [Precision(f"{name}-g{size}", "rtn", bits, "group", size) for size in (128, 64, 32)]
        found.append(Precision(f"{name}-tensor", "rtn", bits, "tensor"))
    calibrated: tuple[tuple[Method, int], ...] = (("gptq", 8), ("gptq", 4), ("awq", 4))
    for method, bits in calibrated:
        name = f"{method}-int{bits}"
        found.append(Precision(name, method, bits, "group", 128, "generic"))
        found += [Precision(f"{name}-g{size}", method, bits, "group", size, "generic") for size in (64, 32)]
        found.append(Precision(f"{name}-channel", method, bits, "channel", None, "generic"))
    found += [Precision("mxfp4", "mxfp4", 4, "group", 32), Precision("nvfp4", "nvfp4", 4, "group", 16)]
    found += [Precision(f"gguf-q{bits}_0", "gguf", bits, "group", 32) for bits in (4, 8)]
    for name in ("bnb-nf4", "bnb-fp4"):
        found.append(Precision(name, "bnb", 4, "group", BNB_BLOCK))
        found.append(Precision(f"{name}-dq", "bnb", 4, "group", BNB_BLOCK, double_quantization=True))
    found.append(Precision("bnb-int8", "bnb", 8, "channel"))
    found.append(Precision("torchao-int8", "torchao", 8, "channel"))
    found.append(Precision("torchao-int4", "torchao", 4, "group", 128))
    found += [Precision(f"torchao-int4-g{size}", "torchao", 4, "group", size) for size in (64, 32)]
    found.append(Precision("torchao-int4-channel", "torchao", 4, "channel"))
    return {precision.name: precision for precision in found}


PRECISIONS: Mapping[str, Precision] = MappingProxyType(_known())
"""Every precision by name, in the order in which they are listed; those with a calibration without its `@source`."""


def parse(name: str) -> Precision:
    """The precision of that name; `gptq-int4@generic` is `gptq-int4`.

    Raises:
        InvalidRequest: `unknown_precision`, listing the known ones.
    """
    base, at, source = name.partition("@")
    found = PRECISIONS.get(base)
    if found is None:
        close = difflib.get_close_matches(base, PRECISIONS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise InvalidRequest(
            "unknown_precision", f"There is no precision {name!r}.{hint} Known: {', '.join(PRECISIONS)}"
        )
    if not at:
        return found
    for known in SOURCES:
        if source == known and found.calibration is not None:
            return found if known == found.calibration else replace(found, name=name, calibration=known)
    if found.calibration is None:
        raise InvalidRequest("unknown_precision", f"{base} takes no calibration texts; leave out @{source}")
    raise InvalidRequest(
        "unknown_precision", f"{base} is calibrated on one of {', '.join(SOURCES)}; there is no {source!r}"
    )
