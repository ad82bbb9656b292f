"""What a client prefers (Accept) and what it already has (If-None-Match).

Our own parser, because Starlette parses neither header. Werkzeug's was tried: where `application/json` is offered, it
refuses `application/json; charset=utf-8`, which some clients ask for.
"""

from collections.abc import Mapping

from app.errors import NotAcceptable


def negotiate(accept: str, offered: Mapping[str, str]) -> str:
    """The name of the offered media type that an Accept header prefers; the first where it has no preference.

    Args:
        offered: Name -> media type.

    Raises:
        NotAcceptable: when it accepts none of them.
    """
    wishes = [_wish(part) for part in accept.split(",") if part.strip()] or [("*/*", 1.0)]
    best: tuple[float, str] | None = None
    for name, media_type in offered.items():
        quality = _quality(media_type, wishes)
        if quality > 0 and (best is None or quality > best[0]):
            best = (quality, name)
    if best is None:
        raise NotAcceptable(
            "not_acceptable", f"the report is available as {', '.join(offered.values())}; ?format= overrides Accept"
        )
    return best[1]


def unchanged(if_none_match: str | None, etag: str) -> bool:
    """Whether the client already has this version."""
    if if_none_match is None:
        return False
    given = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in given or etag in given


def _wish(part: str) -> tuple[str, float]:
    media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return media_range, float(value)
            except ValueError:
                return media_range, 0.0
    return media_range, 1.0


def _quality(media_type: str, wishes: list[tuple[str, float]]) -> float:
    # The most specific range decides (RFC 9110, 12.5.1).
    for media_range in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        found = [quality for wanted, quality in wishes if wanted == media_range]
        if found:
            return max(found)
    return 0.0
