"""Precision names: how weights can be held while a model is evaluated.

Names only, so that the API can validate a plan without torch; `worker.engine.precision` applies them.

    full
    rtn-int{8,4,3,2}[-g128|-g64|-g32|-tensor]     round to nearest, the papers' formula; per output channel by default
    bnb-nf4, bnb-fp4, bnb-int8                    bitsandbytes
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from app.errors import InvalidRequest

Method = Literal["full", "rtn", "bnb"]
Granularity = Literal["channel", "tensor", "group"]


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
    found += [Precision(name, "bnb", 4, "group", BNB_BLOCK) for name in ("bnb-nf4", "bnb-fp4")]
    found.append(Precision("bnb-int8", "bnb", 8, "channel"))
    return {precision.name: precision for precision in found}


PRECISIONS: Mapping[str, Precision] = MappingProxyType(_known())
"""Every precision by name, in the order in which they are listed."""


def parse(name: str) -> Precision:
    """The precision of that name.

    Raises:
        InvalidRequest: `unknown_precision`, listing the known ones.
    """
    try:
        return PRECISIONS[name]
    except KeyError:
        close = difflib.get_close_matches(name, PRECISIONS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise InvalidRequest(
            "unknown_precision", f"There is no precision {name!r}.{hint} Known: {', '.join(PRECISIONS)}"
        ) from None
