"""`python -m worker.engine.demo --cache DIR --seed N`: build the tiny world and say where it is.

Prints a JSON object per line: {"stage", "done", "total"} while it builds, then {"forget_set", "record", "native":
{"original", "unlearned", "retrained"}, "ordinary": …} with paths, and "remediations": how the native original is
unlearned again so that it survives, as bodies of `POST /v1/audits/{id}/remediations`.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from worker.engine.demo.build import build
from worker.engine.demo.recipe import LORA, SURE


def main() -> None:
    """Build and print."""
    parser = argparse.ArgumentParser(prog="python -m worker.engine.demo", description=__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="directory that keeps built worlds")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    world = build(
        arguments.cache,
        seed=arguments.seed,
        progress=lambda stage, done, total: _say({"stage": stage, "done": done, "total": total}),
    )
    _say({**asdict(world), "remediations": [recipe.model_dump(mode="json") for recipe in (SURE, LORA)]})


def _say(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event, default=str) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
