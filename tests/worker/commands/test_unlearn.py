"""`lethe unlearn` as users call it."""

import json
import subprocess
import sys
from pathlib import Path

from app.checkpoints.format.digests import digest
from app.evidence.unlearning import Unlearned
from tests.support.factories import bundle_content, sentences
from worker.commands.unlearn import last_reading


def lethe(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app.cli", "unlearn", *map(str, args), "--threads", "1"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def forget_set(path: Path) -> Path:
    content = bundle_content(4) | {"raw/retain": [" ".join(sentences(3, i)) for i in range(4)]}
    for name, items in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / f"{name}.json").write_text(json.dumps(items))
    return path


def test_it_writes_a_checkpoint_its_card_and_its_record(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "set.json").write_text('{"max_steps": 9, "alpha": 8, "stop": {"answers": 0, "membership": 1}}')
    given = ["--method", "sure", "--loss", "npo_gdr", "--hyperparameters", tmp_path / "set.json"]
    given += ["--set", "max_steps=2", "--set", "stop.every=1", "--set", "schedule=cosine", "--work", tmp_path / "work"]
    ran = lethe(llama, "--forget-set", forget_set(tmp_path / "set"), "--out", tmp_path / "out", *given)
    assert ran.returncode == 0, ran.stderr
    record = Unlearned.model_validate_json((tmp_path / "out" / "unlearning.json").read_text())
    chosen = record.recipe.hyperparameters
    assert (record.recipe.method, record.recipe.loss, chosen.max_steps, chosen.alpha) == ("sure", "npo_gdr", 2, 8)
    assert chosen.stop is not None
    assert (chosen.stop.every, chosen.stop.answers, chosen.stop.passages, chosen.schedule) == (1, 0, 0.6, "cosine")
    assert digest(tmp_path / "out") == record.digest
    assert record.digest in ran.stdout
    (line,) = last_reading(record)
    assert line in ran.stdout
    # After going back, the last reading is of a model that was given up.
    given_up = record.readings[-1].model_copy(update={"step": 3, "utility": 0.0})
    gone_back = record.model_copy(update={"stopped": "utility_floor", "readings": [*record.readings, given_up]})
    assert last_reading(gone_back) == [line]
    card = (tmp_path / "out" / "README.md").read_text()
    for said in (record.digest, record.original.digest, record.forget_set.digest, "SURE over npo_gdr", "Not audited"):
        assert said in card
    assert "| alpha | 8.0 |" in card
    before = json.loads((tmp_path / "work" / "unlearning-state.json").read_text())
    assert before["resumed"] == 0


def test_lora_prints_nothing_but_its_own_and_the_first_run_of_a_process_is_like_the_second(
    llama: Path, tmp_path: Path
) -> None:
    """Where gptqmodel is installed, peft imports it, which prints a banner and takes random numbers."""
    script = """
import os
import sys
from pathlib import Path
from tests.support.engine.unlearning import raw_bundle, small
from worker.engine.unlearning.unlearn import unlearn
for run in ("first", "second"):
    print(unlearn(Path(sys.argv[1]), Path(sys.argv[2]) / run, raw_bundle(), small("lora", "ga_gdr")).digest)
print(os.environ["GPTQMODEL_CPU_WORKERS"])
"""
    ran = subprocess.run(
        [sys.executable, "-c", script, str(llama), str(tmp_path)], capture_output=True, text=True, check=True
    )
    first, second, workers = ran.stdout.splitlines()
    assert first == second
    assert workers, "or with two cores gptqmodel has none for the artifacts that this process opens later"


def test_what_is_wrong_is_said_before_anything_is_loaded(llama: Path, tmp_path: Path) -> None:
    bundle = forget_set(tmp_path / "set")
    wrong = {
        ("--set", "alpha=much"): "hyperparameter alpha: Input should be a valid number",
        ("--set", "alfa=1"): "hyperparameter alfa: Extra inputs are not permitted",
        ("--set", "alpha"): "expected name=value",
        ("--method", "magic"): "There is no method 'magic'. Known: plain, sure, lora, control",
        ("--loss", "rmu"): "There is no loss 'rmu'",
    }
    for given, said in wrong.items():
        ran = lethe(llama, "--forget-set", bundle, "--out", tmp_path / "out", *given)
        assert ran.returncode == 3, ran.stderr
        assert said in " ".join(ran.stderr.split())
    (bundle / "raw" / "retain.json").unlink()
    ran = lethe(llama, "--forget-set", bundle, "--out", tmp_path / "out")
    assert ran.returncode == 3
    assert "forget_set_incomplete" in ran.stderr
    assert "raw/retain.json" in ran.stderr
    assert not (tmp_path / "out").exists()
