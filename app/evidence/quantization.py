"""How an already quantized checkpoint stores its weights."""

from app.catalog.frozen import Frozen, Scalar

QUANT_METHODS = ("bitsandbytes", "compressed-tensors", "gptq", "awq")
"""The values of `quant_method` that Lethe opens."""


class Quantization(Frozen):
    """How the weights of a checkpoint are stored."""

    method: str
    """One of `QUANT_METHODS`."""
    bits: int | None
    """Bits per quantized weight; None when modules differ."""
    granularity: str | None
    group_size: int | None
    parameters: dict[str, Scalar]
    """Other details of the format: symmetric, format, what made it (`made_by`), ..."""

    def same_format(self, other: "Quantization") -> bool:
        """Whether both are stored in the same format, whatever made them."""
        mine, theirs = (one.model_dump() for one in (self, other))
        for one in (mine, theirs):
            one["parameters"].pop("made_by", None)
        return mine == theirs
