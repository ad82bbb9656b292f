"""`lethe diagnose` as users call it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from app.evidence.diagnosis import Diagnosis
from tests.support.engine.weights import save


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    torch.manual_seed(0)
    weights = {name: torch.randn(8, 128) for name in ("still", "moved")}
    original = save(tmp_path / "original", weights)
    return original, save(tmp_path / "unlearned", weights | {"moved": weights["moved"] * 1.05})


def lethe(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app.cli", "diagnose", *map(str, args), "--threads", "1"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_prints_the_modules_says_what_it_does_not_mean_and_writes_all(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    ran = lethe(*pair, "--top", 1, "--out", tmp_path / "it.json")
    assert ran.returncode == 0, ran.stderr
    text = " ".join(ran.stdout.split())
    assert "50.0 % of the weights moved" in text
    assert "layers.0.moved" in text
    assert "1 further modules are in the JSON" in text
    assert "never decides a verdict" in text
    assert "weights" in ran.stderr  # the progress bar
    found = Diagnosis.model_validate_json((tmp_path / "it.json").read_text())
    assert [module.module for module in found.modules] == ["layers.0.moved", "layers.0.still"]


def test_it_writes_markdown_and_takes_precisions(pair: tuple[Path, Path], tmp_path: Path) -> None:
    ran = lethe(*pair, "--precisions", "rtn-int3, bnb-fp4", "--out", tmp_path / "it.md")
    assert ran.returncode == 0, ran.stderr
    text = (tmp_path / "it.md").read_text()
    assert text.startswith("## Where the update lives")
    assert "rtn-int3" in text
    assert "rtn-int8" not in text


def test_what_it_cannot_do_ends_with_exit_code_3_and_a_sentence(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = save(tmp_path / "other", {"still": torch.ones(8, 64)})
    ran = lethe(pair[0], other)
    assert ran.returncode == 3
    assert "pair_mismatch" in ran.stderr
    said = " ".join(ran.stderr.split())
    assert "layers.0.moved.weight: only in the first" in said
    assert "layers.0.still.weight: [8, 128] against [8, 64]" in said
    assert lethe(*pair, "--precisions", "gguf").returncode == 3
    assert lethe(pair[0], tmp_path / "nowhere").returncode == 3
