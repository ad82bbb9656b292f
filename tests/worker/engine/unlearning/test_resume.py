"""An unlearning that is killed goes on from its last state and ends with the same bits."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from app.errors import InvalidRequest
from tests.support.engine.unlearning import raw_bundle, small, tensor_digests
from tests.support.places import REPOSITORY
from worker.engine.unlearning.unlearn import unlearn

# Dropout of the adapters draws from the random state; momentum, warm-up and accumulation are all in play.
HYPERPARAMETERS: dict[str, Any] = {
    "max_steps": 9,
    "checkpoint_every": 2,
    "schedule": "cosine",
    "warmup_ratio": 0.3,
    "gradient_accumulation": 2,
    "lora_dropout": 0.2,
    "modules": "linear",
    "saliency_percentile": 70,
}
STOP = {"every": 3, "passages": 0.0, "answers": 0.0, "membership": 1.0, "utility_floor": 0.0}


def child(original: Path, folder: Path, method: str, loss: str, given: dict[str, Any], die: int) -> int:
    paths = [original, folder / "out", folder / "work"]
    command = [sys.executable, "-m", "tests.support.engine.unlearning_child", *map(str, paths), method, loss]
    return subprocess.run([*command, json.dumps(given), str(die)], cwd=REPOSITORY, check=False).returncode


@pytest.mark.timeout(900)  # every child loads torch anew: a minute each on a busy machine
@pytest.mark.parametrize(
    ("method", "loss", "stop", "kills"), [("lora", "npo_gdr", None, (5, 7)), ("sure", "ga_klr", STOP, (5,))]
)
def test_killed_in_the_middle_it_ends_with_the_same_bits(
    llama: Path, tmp_path: Path, method: str, loss: str, stop: Any, kills: tuple[int, ...]
) -> None:
    given = HYPERPARAMETERS | {"stop": stop}
    whole = unlearn(llama, tmp_path / "whole", raw_bundle(), small(method, loss, **given))
    folder = tmp_path / "killed"
    for step in kills:
        assert child(llama, folder, method, loss, given, step) == -signal.SIGKILL
        assert not (folder / "out").exists()
        assert [path.name for path in (folder / "work").glob("state-*")] == [f"state-{step - 1}"]
    record = unlearn(llama, folder / "out", raw_bundle(), small(method, loss, **given), work=folder / "work")
    assert record.digest == whole.digest
    assert tensor_digests(folder / "out") == tensor_digests(tmp_path / "whole")
    assert record.resumed == len(kills)
    assert (record.losses, record.readings, record.stopped, record.steps) == (
        whole.losses,
        whole.readings,
        whole.stopped,
        whole.steps,
    )
    assert [point.step for point in record.losses] == list(range(1, 10))


def test_an_interruption_by_the_caller_can_be_taken_up_too(llama: Path, tmp_path: Path) -> None:
    class Cancelled(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("train", 3):
            raise Cancelled

    chosen = small("plain", "ga_gdr", max_steps=5, checkpoint_every=1)
    with pytest.raises(Cancelled):
        unlearn(llama, tmp_path / "out", raw_bundle(), chosen, work=tmp_path / "work", progress=stop)
    assert list(tmp_path.iterdir()) == [tmp_path / "work"]
    seen: list[int] = []
    record = unlearn(
        llama, tmp_path / "out", raw_bundle(), chosen, work=tmp_path / "work", on_loss=lambda p: seen.append(p.step)
    )
    assert seen == [3, 4, 5]
    assert record.digest == unlearn(llama, tmp_path / "whole", raw_bundle(), chosen).digest


def test_a_state_of_another_unlearning_is_refused(llama: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    unlearn(llama, tmp_path / "a", raw_bundle(), small("plain", "ga_gdr"), work=work)
    with pytest.raises(InvalidRequest, match="another unlearning \\(recipe differ") as refused:
        unlearn(llama, tmp_path / "b", raw_bundle(), small("plain", "ga_gdr", alpha=2.5), work=work)
    assert refused.value.code == "state_mismatch"
    other = raw_bundle(raw_forget=["Something else was written here by someone."])
    with pytest.raises(InvalidRequest, match="forget set differ"):
        unlearn(llama, tmp_path / "b", other, small("plain", "ga_gdr"), work=work)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(InvalidRequest, match="is not empty"):
        unlearn(llama, tmp_path / "b", raw_bundle(), small("plain", "ga_gdr"), work=tmp_path / "mine")
    assert not (tmp_path / "b").exists()


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(llama: Path, tmp_path: Path) -> None:
    digests = [
        unlearn(llama, tmp_path / str(turn), raw_bundle(), small("lora", "ga_gdr", seed=seed, batch_size=2)).digest
        for turn, seed in enumerate((1, 1, 2))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_an_original_that_changed_is_another_unlearning(llama: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(llama, copy)
    chosen = small("plain", "ga_gdr")
    unlearn(copy, tmp_path / "a", raw_bundle(), chosen, work=tmp_path / "work")
    tensors = load_file(copy / "model.safetensors")
    tensors["lm_head.weight"] += 1
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidRequest, match="original differ"):
        unlearn(copy, tmp_path / "b", raw_bundle(), chosen, work=tmp_path / "work")
