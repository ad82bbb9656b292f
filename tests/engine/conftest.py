"""One thread (two cores are shared by all) and the fixtures of the engine's tests."""

from pathlib import Path

import pytest
import torch

from app.forget_sets.bundle import Bundle, parse
from tests.factories import bundle_files, tiny_checkpoint

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama on disk; its tokenizer adds a BOS. Read only."""
    return tiny_checkpoint(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def neox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random GPT-NeoX on disk; its tokenizer adds no BOS. Read only."""
    return tiny_checkpoint(tmp_path_factory.mktemp("neox"), "neox", seed=1)


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """A bundle with every set, six items each."""
    return parse(bundle_files(6))
