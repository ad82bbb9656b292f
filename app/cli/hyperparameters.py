"""`--set alpha=8` on a command line -> a hyperparameter."""

import json
from collections.abc import Iterable
from typing import Any

from app.errors import InvalidRequest


def apply_options(chosen: dict[str, Any], given: Iterable[str]) -> dict[str, Any]:
    """`chosen` updated by the options; `stop.every=5` sets a field of the object `stop`.

    Raises:
        InvalidRequest: an option is not an assignment.
    """
    for option in given:
        name, found, value = option.partition("=")
        if not found:
            raise InvalidRequest("invalid_request", f"--set {option}: expected name=value, such as alpha=8")
        *folders, leaf = name.split(".")
        place = chosen
        for folder in folders:
            inner = place.get(folder)
            place[folder] = dict(inner) if isinstance(inner, dict) else {}
            place = place[folder]
        place[leaf] = _value(value)
    return chosen


def _value(text: str) -> Any:
    """The value of JSON (8, 1e-4, null, ["q_proj"]), else the text itself (cosine)."""
    try:
        return json.loads(text)
    except ValueError:
        return text
