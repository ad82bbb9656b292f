"""The folder of an unlearning that can be interrupted: whose it is, and how often it was taken up again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from app.catalog.frozen import Scalar
from app.errors import InvalidRequest

_NAME: Final = "unlearning-state.json"


def claim(work: Path, facts: Mapping[str, Scalar]) -> int:
    """Make the folder this unlearning's; returns how often it was taken up again before, now included.

    Args:
        work: A folder, made when missing; empty, or one that an unlearning with the same facts has left.
        facts: All that the result follows from.

    Raises:
        InvalidRequest: `state_mismatch` when it holds the state of another unlearning, or something else.
    """
    work.mkdir(parents=True, exist_ok=True)
    mine = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode()).hexdigest()
    file = work / _NAME
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["digest"] != mine:
            other = ", ".join(sorted(key for key in facts if found["facts"].get(key) != facts[key]))
            raise InvalidRequest(
                "state_mismatch",
                f"{work} holds the state of another unlearning ({other} differ); empty it or take another",
            )
        resumed = int(found["resumed"]) + 1
    elif any(entry.name != f".{_NAME}" for entry in work.iterdir()):
        raise InvalidRequest("state_mismatch", f"{work} is not empty and holds no state of an unlearning; take another")
    else:
        resumed = 0
    part = work / f".{_NAME}"
    part.write_text(json.dumps({"digest": mine, "facts": dict(facts), "resumed": resumed}), encoding="utf-8")
    os.replace(part, file)
    return resumed
