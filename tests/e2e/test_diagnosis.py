"""`lethe diagnosis` against a running service."""

import json
from pathlib import Path

import torch

from app.cli.embedded import embedded, free_port
from app.settings import Settings
from tests.support.commands import lethe
from tests.support.engine.weights import save


def test_a_diagnosis_is_submitted_followed_and_read_by_command(tmp_path: Path) -> None:
    weights = {name: torch.randn(8, 128) for name in ("still", "moved")}
    save(tmp_path / "original", weights)
    save(tmp_path / "unlearned", weights | {"moved": weights["moved"] * 1.05})
    wanted = Settings(
        data_dir=tmp_path / "data", database_url="", broker_url="", roots=[tmp_path], port=free_port(), device="cpu"
    )
    with embedded(wanted) as service:
        env = {"LETHE_URL": service.url, "LETHE_API_KEY": service.key}
        pair = ("--original", tmp_path / "original", "--unlearned", tmp_path / "unlearned")
        made = lethe("diagnosis", "submit", *pair, "--precisions", "rtn-int4,bnb-nf4", env=env)
        assert made.returncode == 0, made.stderr
        diagnosis = made.stdout.strip()
        waited = lethe("diagnosis", "wait", diagnosis, env=env)
        assert waited.returncode == 0, waited.stderr
        assert "layers.0.moved" in waited.stdout
        assert "never decides a verdict" in " ".join(waited.stdout.split())
        shown = lethe("diagnosis", "show", diagnosis, "--json", "--out", tmp_path / "it.json", env=env)
        assert json.loads(shown.stdout)["state"] == "succeeded"
        assert json.loads((tmp_path / "it.json").read_text())["precisions"] == ["rtn-int4", "bnb-nf4"]
        refused = lethe("diagnosis", "submit", *pair, "--precisions", "bnb-nf4-dq", env=env)
        assert refused.returncode == 3
        assert "has the same codes as bnb-nf4; use that" in " ".join(refused.stderr.split())
