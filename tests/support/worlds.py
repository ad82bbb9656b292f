"""The tiny world, built once for all tests that want it."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def world_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where trained worlds are kept during these tests: one place for all of pytest-xdist's processes.

    (`build` has a lock: whoever asks second waits for the first.)
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "worlds"
    shared.mkdir(exist_ok=True)
    return shared
