"""Precision names: how weights can be held while a model is evaluated.

Names only, so that the API can validate a plan without torch; `quantizers` says what there is,
`worker.engine.precisions` applies it.

    full
    rtn-int{8,4,3,2}[-g128|-g64|-g32|-tensor]     round to nearest, the papers' formula; per output channel by default
    gptq-int{8,4}[-g64|-g32|-channel][@source]    GPTQ (arXiv 2210.17323), in groups of 128 by default
    awq-int4[-g64|-g32|-channel][@source]         AWQ (arXiv 2306.00978), in groups of 128 by default
    mxfp4, nvfp4                                  the 4-bit floating-point formats that models ship in, weights only
    gguf-q4_0, gguf-q8_0                          llama.cpp's block formats
    bnb-{nf4,fp4}[-dq], bnb-int8                  bitsandbytes; dq: double quantization, the scales in 8 bits
    torchao-int8, torchao-int4[-g64|-g32|-channel] torchao, weights only; int4 in groups of 128 by default

GPTQ and AWQ read texts while they quantize; `@retain`, `@forget` or `@file` says which (generic ones by default).
llama.cpp's K-quants are not here: the `gguf` package can read them, but doesn't implement how they are made.
"""

import difflib
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from app.catalog.quantizers import QUANTIZERS, SOURCES, Precision
from app.errors import InvalidRequest

FULL = Precision("full", "full", None, None)

PRECISIONS: Mapping[str, Precision] = MappingProxyType(
    {one.name: one for one in (FULL, *(one for quantizer in QUANTIZERS.values() for one in quantizer.precisions))}
)
"""Every precision by name, in the order in which they are listed; calibrated ones without their `@source`."""


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
