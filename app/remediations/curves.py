"""Loss curves as they are shown and kept while training goes on."""

from collections.abc import Sequence

from app.evidence.unlearning import LossPoint

SHOWN = 500


def thin(losses: Sequence[LossPoint]) -> list[LossPoint]:
    """At most `SHOWN` points, evenly apart, the last one among them."""
    stride = -(-len(losses) // SHOWN) or 1
    return [point for number, point in enumerate(losses) if (len(losses) - 1 - number) % stride == 0]
