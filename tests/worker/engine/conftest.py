"""One thread (two cores are shared by all) and the fixtures of the engine's tests."""

from pathlib import Path

import pytest
import torch

from app.forget_sets.bundle import Bundle, parse
from tests.support.engine import artifacts
from tests.support.factories import bundle_files, tiny_checkpoint
from tests.support.worlds import copy

__all__ = ["bundle", "copy", "made", "model"]

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """A bundle with every set, six items each."""
    return parse(bundle_files(6))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint."""
    return tiny_checkpoint(tmp_path_factory.mktemp("model"), num_key_value_heads=4)


@pytest.fixture(scope="session")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """That checkpoint, quantized in each way that artifacts come in."""
    out = tmp_path_factory.mktemp("artifacts")
    found = {kind: artifacts.bitsandbytes(model, out / kind, kind) for kind in artifacts.BNB}
    found["w4a16"] = artifacts.compressed(model, out / "w4a16")
    found["half"] = artifacts.compressed(model, out / "half", targets="re:.*layers.0.*proj")
    for scheme in ("MXFP4A16", "NVFP4A16", "W8A8", "FP8_DYNAMIC"):
        found[scheme] = artifacts.compressed(model, out / scheme, scheme)
    return found | artifacts.by_gptqmodel(model, out, "gptq", "awq")
