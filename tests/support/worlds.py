"""What is built once for all tests that want it: the tiny world, two random checkpoints, and copies of one."""

import os
import shutil
from pathlib import Path

import pytest

from tests.support.factories import tiny_checkpoint


@pytest.fixture(scope="session")
def world_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where trained worlds are kept during these tests: one place for all of pytest-xdist's processes.

    (`build` has a lock: whoever asks second waits for the first.)
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "worlds"
    shared.mkdir(exist_ok=True)
    return shared


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama on disk; its tokenizer adds a BOS. Read only."""
    return tiny_checkpoint(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def neox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random GPT-NeoX on disk; its tokenizer adds no BOS. Read only."""
    return tiny_checkpoint(tmp_path_factory.mktemp("neox"), "neox", seed=1)


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    """A checkpoint of this test's own."""
    return Path(shutil.copytree(llama, tmp_path / "checkpoint"))
