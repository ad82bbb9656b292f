"""How the processes of Lethe start, so that what runs is this package, whatever lies in the current directory.

Python looks for modules in the current directory (`python -m`, `python -c`) and in PYTHONPATH (CI jobs often set it to
`.`) before it looks where packages are installed: a folder `worker/` there would run instead of ours, and exit with
whatever code it likes. So every process is started by `command` with `environment`, and `lethe` itself by the
script in `app/cli`. This module imports nothing of app before it knows that it is ours.
"""

import importlib
import os
import sys
import traceback
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[1]
"""Where our own packages are: in a checkout, or where pip installed them."""
PACKAGES: Final = ("app", "worker", "migrations")
CANNOT_START: Final = 3
"""`exit_codes.USAGE`, which cannot be imported here. 0, 1 and 2 are verdicts, and Python itself exits with them."""

left_out: list[str] = []
"""The entries of PYTHONPATH that `lethe` ignores."""


class Sorted(NamedTuple):
    """The entries of a PYTHONPATH."""

    kept: list[str]
    left_out: list[str]


def sort_path(value: str) -> Sorted:
    """Which entries of a PYTHONPATH are safe to search.

    Left out are relative entries, the current directory and everything below it (unless it is `/`, which everything is
    below), and those that hold a foreign package with one of our names.
    """
    try:
        here = Path(os.getcwd()).resolve()
    except FileNotFoundError:
        here = None
    found = Sorted([], [])
    for entry in value.split(os.pathsep) if value else []:
        (found.kept if os.path.isabs(entry) and _safe(entry, here) else found.left_out).append(entry)
    return found


def command(module: str, *args: str) -> list[str]:
    """The command line of a process that runs `main()` of a module of ours; it needs `environment()` too."""
    return [sys.executable, "-P", __file__, module, *args]


def environment() -> dict[str, str]:
    """This process's environment, with a PYTHONPATH in which a child, and its children, find our own packages first."""
    kept = sort_path(os.environ.get("PYTHONPATH", "")).kept
    if ROOT.name not in ("site-packages", "dist-packages"):
        kept = [str(ROOT), *(entry for entry in kept if entry != str(ROOT))]
    found = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PYTHONSAFEPATH": "1"}
    return found | ({"PYTHONPATH": os.pathsep.join(kept)} if kept else {})


def lethe() -> None:
    """The command `lethe`: the installed script has put PYTHONPATH aside before Python started."""
    kept, dropped = sort_path(os.environ.pop("LETHE_PYTHONPATH", ""))
    sys.path[:0] = kept
    if kept:
        os.environ["PYTHONPATH"] = os.pathsep.join(kept)
    left_out.extend(dropped)
    start("app.cli")


def start(module: str) -> None:
    """Run `main()` of a module of ours; if it cannot be imported, for whatever reason, print a sentence and exit 3."""
    try:
        found = importlib.import_module("app").__file__
        if found is None or Path(found).resolve().parent != ROOT / "app":
            raise ImportError(f"found another package `app` in {found}, not ours in {ROOT / 'app'}")
        outputs = importlib.import_module("app.cli.outputs")
        outputs.outlive_readers()
        main: Any = importlib.import_module(module).main
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        sys.stderr.write(f"error: {module} cannot start: {import_failure(error) or error!r}\n")
        sys.exit(CANNOT_START)
    main()


def import_failure(error: BaseException) -> str | None:
    """What went wrong, and what to do, if the error was raised by an import; None for any other error."""
    frames = traceback.walk_tb(error.__traceback__)
    modules = [frame.f_code.co_filename for frame, _ in frames if frame.f_code.co_name == "<module>"]
    if not modules and not isinstance(error, ImportError):
        return None
    what = f"{type(error).__name__}: {error}".removesuffix(": ")
    if isinstance(error, SystemExit):
        what = f"it exited ({what})"
    if isinstance(error, SyntaxError):
        what = f"{error.filename}: {what}"
    place = f"importing {modules[-1]}: " if modules else ""
    todo = "is everything it needs installed? pip install 'lethe-audit[worker]'"
    if left_out:
        todo += f"; PYTHONPATH's {os.pathsep.join(left_out)!r} is ignored, as it may hold other packages"
    return f"{place}{what}; {todo}"


def _safe(entry: str, here: Path | None) -> bool:
    place = Path(entry).resolve()
    if place == ROOT:
        return True
    below = here is not None and here != Path(here.anchor) and place.is_relative_to(here)
    return place != here and not below and not any(PathFinder.find_spec(name, [entry]) for name in PACKAGES)


if __name__ == "__main__":
    wanted = sys.argv.pop(1)
    start(wanted)
