"""`python -m worker.engine.demo --cache DIR --seed N`: build the tiny world and print where it is."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from worker.engine.demo.build import build


def _show(stage: str, done: int, total: int) -> None:
    sys.stderr.write(f"\r{stage}: {done} of {total} steps ")
    sys.stderr.flush()


def main() -> None:
    """Build and print the paths, one a line."""
    parser = argparse.ArgumentParser(prog="python -m worker.engine.demo", description=__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="directory that keeps built worlds")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    world = build(arguments.cache, seed=arguments.seed, progress=_show if sys.stderr.isatty() else None)
    lines = [f"forget set           {world.forget_set}"]
    for name, pair in (("native", world.native), ("ordinary", world.ordinary)):
        lines += [f"{name:8s} {role:11s} {getattr(pair, role)}" for role in ("original", "unlearned", "retrained")]
    lines.append(f"record               {world.record}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
