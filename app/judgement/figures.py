"""How scores and shares are written, alike in sentences, in tables and on the terminal.

Shares are fractions (0.417 is written 41.7 %), differences of shares are points; a score is x100 already.
"""

import math

from app.judgement.statistics.intervals import Estimate

NOTHING = "–"


def hundredfold(value: float | Estimate | None, decimals: int = 0) -> str:
    """A share without the percent sign, as 42."""
    fraction = value.value if isinstance(value, Estimate) else value
    return NOTHING if fraction is None else f"{100 * fraction:.{decimals}f}"


def percent(value: float | Estimate | None, decimals: int = 1) -> str:
    """A share, as 41.7 %."""
    if isinstance(value, float) and not math.isfinite(value):
        return "an unknown share"
    return NOTHING if value is None else f"{hundredfold(value, decimals)} %"


def whole_percent(value: float | Estimate | None) -> str:
    """A share in a table or in passing, as 42 %."""
    return percent(value, 0)


def level(fraction: float) -> str:
    """A confidence or the chance of an error, with all its digits, as 99.5 %."""
    return f"{100 * fraction:g} %"


def points(fraction: float, decimals: int = 1) -> str:
    """A difference of shares, as +12.3."""
    return f"{100 * fraction:+.{decimals}f}"


def points_or_any(fraction: float) -> str:
    """The size of a difference that may have no bound."""
    return hundredfold(fraction, 1) if math.isfinite(fraction) else "any size"


def span(found: Estimate) -> str:
    """A difference with its interval, in points, in a sentence: +12.3 (+8.0 to +16.1)."""
    if found.low is None or found.high is None:
        return f"{points(found.value)} (no interval)"
    return f"{points(found.value)} ({points(found.low)} to {points(found.high)})"


def narrow_span(found: Estimate | None) -> str:
    """The same in a table: +12 [+8, +16]."""
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return points(found.value, 0)
    return f"{points(found.value, 0)} [{points(found.low, 0)}, {points(found.high, 0)}]"


def excluding(gain: Estimate | None, excluded: float | None) -> str:
    """A gain in a table, and the size above which it is excluded: +1 [-2, +4] <5."""
    return narrow_span(gain) + ("" if excluded is None else f" <{hundredfold(excluded)}")


def interval(found: Estimate | None, scale: float, decimals: int) -> str:
    """A value with its interval, times `scale`: 0.52 (0.49 to 0.55)."""
    if found is None:
        return "not measured"
    said = f"{scale * found.value:.{decimals}f}"
    if found.low is None or found.high is None:
        return said
    return f"{said} ({scale * found.low:.{decimals}f} to {scale * found.high:.{decimals}f})"


def score(value: float | None) -> str:
    """A score, which is x100 already, as 41.7."""
    return NOTHING if value is None else f"{value:.1f}"


def score_with_auc(value: float | None, auc: float | None) -> str:
    """PrivLeak explodes for small references, so its AUC is always shown beside it."""
    if auc is None:
        return score(value)
    return f"AUC {auc:.2f}" if value is None else f"{score(value)} (AUC {auc:.2f})"
