"""`--set alpha=8` on a command line -> a hyperparameter."""

import json
from collections.abc import Iterable
from typing import Any

from app.errors import InvalidRequest


def apply_options(chosen: dict[str, Any], given: Iterable[str]) -> dict[str, Any]:
    """`chosen` with what options say; `stop.every=5` goes into an object.

    Raises:
        InvalidRequest: an option that is no assignment.
    """
    for option in given:
        name, found, value = option.partition("=")
        if not found:
            raise InvalidRequest("invalid_request", f"--set {option}: name=value expected, as alpha=8")
        *folders, leaf = name.split(".")
        place = chosen
        for folder in folders:
            inner = place.get(folder)
            place[folder] = dict(inner) if isinstance(inner, dict) else {}
            place = place[folder]
        place[leaf] = _value(value)
    return chosen


def _value(text: str) -> Any:
    """JSON where it is JSON, else the text itself: 8, 1e-4, null, ["q_proj"], cosine."""
    try:
        return json.loads(text)
    except ValueError:
        return text
