"""Artifacts: already quantized checkpoints, made from a model of the pair, that are audited as they are.

Each artifact of the unlearned model is one more precision of its audit, `shipped:<name>`. Its denominator is the
original's artifact in the same format where there is one, else the original in full precision. Its evaluation is at
`shipped-<quant_method>`, whichever audit asks for it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

from app.errors import FieldProblem, InvalidRequest
from app.evidence.quantization import QUANT_METHODS, Quantization

Of = Literal["unlearned", "original"]

LENGTH = 64
"""The longest name of a precision."""
PREFIX = "shipped:"
NAME = re.compile(f"[a-z0-9][a-z0-9._-]{{0,{LENGTH - len(PREFIX) - 1}}}")

FORMAT_PRECISIONS = {method: f"shipped-{method}" for method in QUANT_METHODS}
"""quant_method -> the precision of an evaluation of such an artifact, whatever audits call the artifact."""

LIBRARIES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        FORMAT_PRECISIONS["bitsandbytes"]: ("bitsandbytes", "worker"),
        FORMAT_PRECISIONS["compressed-tensors"]: ("compressed_tensors", "worker"),
        FORMAT_PRECISIONS["gptq"]: ("gptqmodel", "gptqmodel"),
        FORMAT_PRECISIONS["awq"]: ("gptqmodel", "gptqmodel"),
    }
)
"""Such a precision -> the import name of the library that opens it, and Lethe's extra that installs it."""


class Named(NamedTuple):
    """An artifact of an audit whose files have been read."""

    name: str
    of: Of
    quantization: Quantization

    @property
    def format_precision(self) -> str:
        """The precision of its evaluation."""
        return FORMAT_PRECISIONS[self.quantization.method]


class Shipped(NamedTuple):
    """One precision of an audit: an artifact of the unlearned model, and perhaps its counterpart."""

    precision: str
    unlearned: Named
    original: Named | None

    @property
    def note(self) -> str:
        """A sentence on what its retention is relative to."""
        if self.original is not None:
            return f"{self.precision}: measured against {self.original.name}, the original in the same format."
        return (
            f"{self.precision}: measured against the original in full precision, because no artifact of the original in"
            " the same format was given. Quantization costs the original some knowledge too, so its retention is"
            " understated."
        )


def names(asked: Iterable[tuple[str | None, str]]) -> list[str]:
    """A unique name for each (requested name, folder).

    Raises:
        InvalidRequest: a name is not valid, or two artifacts ask for it.
    """
    taken: list[str] = []
    wanted = list(asked)
    for index, (name, _) in enumerate(wanted):
        if name is not None and not NAME.fullmatch(name):
            raise _refused(
                index,
                f"{name!r} is not a valid name; use lower-case letters, digits, '.', '_', '-'; {LENGTH - 8} at most",
            )
        if name is not None and any(name == other for other, _ in wanted[:index]):
            raise _refused(index, f"two artifacts are named {name!r}; give each its own name")
        taken.append(name or "")
    for index, (name, folder) in enumerate(wanted):
        if name is None:
            base = re.sub("[^a-z0-9._-]+", "-", folder.lower()).strip("-._")[: LENGTH - len(PREFIX) - 4] or "artifact"
            free = (base if number == 1 else f"{base}-{number}" for number in range(1, len(wanted) + 2))
            taken[index] = next(one for one in free if one not in taken)
    return taken


def shipped(artifacts: Sequence[Named]) -> list[Shipped]:
    """The precisions that these artifacts add.

    Raises:
        InvalidRequest: an artifact of the original that no artifact of the unlearned model is measured against.
    """
    found: list[Shipped] = []
    originals = [one for one in artifacts if one.of == "original"]
    for one in artifacts:
        if one.of == "unlearned":
            same = (other for other in originals if other.quantization.same_format(one.quantization))
            found.append(Shipped(f"{PREFIX}{one.name}", one, next(same, None)))
    for index, one in enumerate(artifacts):
        if one.of == "original" and not any(one == pair.original for pair in found):
            raise _refused(
                index,
                f"{one.name} is an artifact of the original, but there is no artifact of the unlearned model in its"
                f" format ({one.quantization.method}, {one.quantization.bits} bits) to measure against it; add one, or"
                " leave this one out",
            )
    return found


def _refused(index: int, message: str) -> InvalidRequest:
    problem = FieldProblem(field=f"artifacts.{index}", message=message)
    return InvalidRequest("invalid_request", f"artifacts.{index}: {message}", errors=[problem])
