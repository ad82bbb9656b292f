"""The tiny world, built once for all tests of the whole product."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LETHE = [sys.executable, "-m", "app.cli"]


@pytest.fixture(scope="session")
def world_cache(tmp_path_factory) -> Path:
    """Where the demo keeps its trained worlds during these tests."""
    return tmp_path_factory.mktemp("world")


def lethe(*args: object, timeout: float = 600, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, without this machine's settings."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("LETHE_")}
    return subprocess.run(
        [*LETHE, *map(str, args)], capture_output=True, text=True, timeout=timeout, env=clean | environment
    )
