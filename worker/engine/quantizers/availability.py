"""Which precisions this machine's libraries can apply; found without importing any of them, not even torch."""

import importlib.util
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from app.catalog.precisions import PRECISIONS
from app.catalog.quantizers import QUANTIZERS, Precision
from app.evidence import artifacts

ENGINE = ("torch", "transformers", "safetensors", "rouge_score")
"""What every evaluation needs."""
NOT_OFFERED = {
    "gguf-q4_k_m": "the gguf package reads K-quants and I-quants, but doesn't implement how they are made",
}
"""Names that people may look for -> why Lethe has no such precision."""


class PrecisionAvailability(NamedTuple):
    """Whether one precision can be applied here."""

    precision: Precision
    version: str | None
    """The library's version; None where the method is Lethe's own, or the library is missing."""
    reason: str | None
    """Why it cannot be applied, and what to do; None when it can."""


def availability() -> list[PrecisionAvailability]:
    """Every precision, in the order of `app.catalog.precisions`."""
    return [PrecisionAvailability(found, library_version(found), unavailable(found)) for found in PRECISIONS.values()]


def unavailable(precision: Precision) -> str | None:
    """Why this machine cannot apply it, and what to do; None when it can."""
    needed = [*ENGINE, *([precision.requires] if precision.requires else [])]
    missing = [name for name in needed if not _present(name)]
    if missing:
        extra = QUANTIZERS[precision.method].extra if precision.requires in missing else "worker"
        return f"{' and '.join(missing)} not installed on this worker; pip install 'lethe-audit[{extra}]'"
    return None


def shipped_unavailable(format_precision: str) -> str | None:
    """Why this machine cannot open artifacts of this precision; None when it can."""
    library, extra = artifacts.LIBRARIES[format_precision]
    missing = [name for name in (*ENGINE, library) if not _present(name)]
    if missing:
        return f"{' and '.join(missing)} not installed on this worker; pip install 'lethe-audit[{extra}]'"
    return None


@cache
def _present(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def library_version(precision: Precision) -> str | None:
    """The version of the library that applies it; None where there is none."""
    return None if precision.requires is None else installed(precision.requires)


def installed(library: str) -> str | None:
    """The version of an installed library."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def libraries() -> dict[str, str]:
    """Library -> version, of those that are installed."""
    shipping = {library for library, _ in artifacts.LIBRARIES.values()}
    found = {
        name: installed(name)
        for name in sorted(
            {"torch", "transformers", *(one.library for one in QUANTIZERS.values() if one.library), *shipping}
        )
    }
    return {name: release for name, release in found.items() if release is not None}
