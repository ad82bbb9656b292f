"""`lethe` as a user starts it."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

LETHE = [sys.executable, "-m", "app.cli"]
INSTALLED = Path(sys.executable).parent / "lethe"
"""The command as pip installed it: what stands before Python starts is part of what is tested."""


def user_environment(**environment: str) -> dict[str, str]:
    """This process's environment without this machine's settings, with these variables."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LETHE_", "PYTHONPATH"))}
    return clean | environment


def lethe(*args: object, timeout: float = 600, env: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, without this machine's settings."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("LETHE_")}
    return subprocess.run(
        [*LETHE, *map(str, args)], capture_output=True, text=True, timeout=timeout, env=clean | dict(env)
    )


def installed(
    *args: object, cwd: Path | None = None, timeout: float = 300, env: Mapping[str, str] = {}
) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a directory, with no PYTHONPATH but the one that is given."""
    return subprocess.run(
        [INSTALLED, *map(str, args)],
        cwd=cwd,
        env=user_environment(**env),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def unread(*args: object, streams: str = "stdout stderr", env: Mapping[str, str] = {}) -> int:
    """The exit code of `lethe …` when nobody reads the pipes that it writes to."""
    read, write = os.pipe()
    os.close(read)
    out, err = (write if name in streams else subprocess.DEVNULL for name in ("stdout", "stderr"))
    command = [str(INSTALLED), *map(str, args)]
    done = subprocess.run(command, env=user_environment(**env), timeout=300, stdout=out, stderr=err)
    os.close(write)
    return done.returncode
