"""The quantizers: one entry says all there is to say about each; the engine's module of that name applies it.

A new quantizer is one file in `worker/engine/quantizers` and one entry here. What can be asked for, the CLI's and the
API's lists, what "not tested" names, which library a worker needs and what is tried first follow from the entry.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

Granularity = Literal["channel", "tensor", "group"]

Calibration = Literal["generic", "retain", "forget", "file"]
"""Which texts GPTQ and AWQ read: Python's own documentation, the bundle's raw/retain or raw/forget, or the
operator's file (LETHE_CALIBRATION_FILE)."""
SOURCES: tuple[Calibration, ...] = get_args(Calibration)

BNB_BLOCK = 64
"""Weights that share a scale in bitsandbytes' 4-bit types."""


@dataclass(frozen=True)
class Precision:
    """One way to hold weights."""

    name: str
    method: str
    """The quantizer's name, or `full`."""
    bits: int | None
    """Bits per quantized weight; None for full precision."""
    granularity: Granularity | None
    """What shares one scale: an output channel (a row of the weight), the whole tensor, or a group within a row."""
    group_size: int | None = None
    calibration: Calibration | None = None
    """Which texts the method reads; None for methods that use the weights alone."""
    double_quantization: bool = False
    """Whether the scales are quantized too (QLoRA, arXiv 2305.14314, section 3)."""

    @property
    def requires(self) -> str | None:
        """The import name of the library that applies it."""
        found = QUANTIZERS.get(self.method)
        return None if found is None else found.library


@dataclass(frozen=True)
class Quantizer:
    """A method of quantizing."""

    method: str
    module: str
    """The file of `worker/engine/quantizers` that applies it."""
    library: str | None
    """The import name of the library that it needs; None for Lethe's own."""
    extra: str
    """The extra of Lethe that installs it."""
    cost: int
    """Cheapest first: 0 rounds, 1 rounds by another library, 2 packs a format, 3 reads texts."""
    precisions: tuple[Precision, ...]
    uneven: str = "the format has no other group size, use rtn-int{bits} or gptq-int{bits}-channel"
    """What to use where groups do not divide a layer's columns."""
    blocks_cross_rows: bool = False
    """Whether groups need not divide the columns."""
    rescales: bool = False
    """Whether it multiplies rows and columns before it rounds; the proof undoes that."""
    tensor_scale: bool = False
    """Whether scales are multiples of one that a whole tensor shares."""


_PER_CHANNEL = (
    "use {method}-int{bits}-g64 or {method}-int{bits}-g32, or {method}-int{bits}-channel (one step per output channel)"
)


def _rtn() -> Iterator[Precision]:
    for bits in (8, 4, 3, 2):
        yield Precision(f"rtn-int{bits}", "rtn", bits, "channel")
        for size in (128, 64, 32):
            yield Precision(f"rtn-int{bits}-g{size}", "rtn", bits, "group", size)
        yield Precision(f"rtn-int{bits}-tensor", "rtn", bits, "tensor")


def _calibrated(method: str, *widths: int) -> Iterator[Precision]:
    for bits in widths:
        name = f"{method}-int{bits}"
        yield Precision(name, method, bits, "group", 128, "generic")
        for size in (64, 32):
            yield Precision(f"{name}-g{size}", method, bits, "group", size, "generic")
        yield Precision(f"{name}-channel", method, bits, "channel", None, "generic")


def _bnb() -> Iterator[Precision]:
    for name in ("bnb-nf4", "bnb-fp4"):
        yield Precision(name, "bnb", 4, "group", BNB_BLOCK)
        yield Precision(f"{name}-dq", "bnb", 4, "group", BNB_BLOCK, double_quantization=True)
    yield Precision("bnb-int8", "bnb", 8, "channel")


def _torchao() -> Iterator[Precision]:
    yield Precision("torchao-int8", "torchao", 8, "channel")
    yield Precision("torchao-int4", "torchao", 4, "group", 128)
    for size in (64, 32):
        yield Precision(f"torchao-int4-g{size}", "torchao", 4, "group", size)
    yield Precision("torchao-int4-channel", "torchao", 4, "channel")


QUANTIZERS: Mapping[str, Quantizer] = MappingProxyType(
    {
        one.method: one
        for one in (
            Quantizer(
                "rtn",
                "rtn",
                None,
                "worker",
                0,
                tuple(_rtn()),
                uneven="use a smaller group size or rtn-int{bits} (one step per output channel)",
            ),
            Quantizer(
                "gptq",
                "compressed",
                "llmcompressor",
                "worker",
                3,
                tuple(_calibrated("gptq", 8, 4)),
                _PER_CHANNEL,
            ),
            Quantizer(
                "awq",
                "compressed",
                "llmcompressor",
                "worker",
                3,
                tuple(_calibrated("awq", 4)),
                _PER_CHANNEL,
                rescales=True,
            ),
            Quantizer(
                "mxfp4", "compressed", "llmcompressor", "worker", 2, (Precision("mxfp4", "mxfp4", 4, "group", 32),)
            ),
            Quantizer(
                "nvfp4",
                "compressed",
                "llmcompressor",
                "worker",
                2,
                (Precision("nvfp4", "nvfp4", 4, "group", 16),),
                tensor_scale=True,
            ),
            Quantizer(
                "gguf",
                "gguf",
                "gguf",
                "worker",
                1,
                tuple(Precision(f"gguf-q{bits}_0", "gguf", bits, "group", 32) for bits in (4, 8)),
            ),
            Quantizer("bnb", "bnb", "bitsandbytes", "worker", 1, tuple(_bnb()), blocks_cross_rows=True),
            Quantizer("torchao", "torchao", "torchao", "worker,torchao", 1, tuple(_torchao()), _PER_CHANNEL),
        )
    }
)
"""Method -> its entry, in the order in which precisions are listed."""
