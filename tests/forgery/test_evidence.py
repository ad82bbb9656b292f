"""What an audit is given to judge by: an original that never knew, a reference that is none, items that are copies."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.support.forgery import ITEMS, Run, World, reweigh

pytestmark = pytest.mark.timeout(1200)


def test_an_original_that_never_knew_the_forget_set_has_nothing_to_forget(
    audit: Run, world: World, unlearned: Path, tmp_path: Path
) -> None:
    ended = audit(Path(shutil.copytree(world.pair.retrained, tmp_path / "retrained")), unlearned)
    assert ended.report is not None
    assert ended.report.verdict == "inconclusive"
    assert "original_not_shown_trained" in ended.reasons


def test_a_model_that_was_unlearned_before_is_no_original(lethe_run: Run, unlearned: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(unlearned, tmp_path / "other"))
    reweigh(other, lambda tensors: tensors["model.norm.weight"].mul_(1.01))
    ended = lethe_run(unlearned, other)
    assert ended.report is not None
    assert ended.report.verdict != "robust"


@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_a_copy_of_the_unlearned_model_is_no_reference(
    lethe_run: Run, world: World, original: Path, untouched: Path, tmp_path: Path, noise: float
) -> None:
    """Beyond such a reference an unlearned model knows nothing, at any precision, whatever it knows."""
    between(world, untouched)
    reference = Path(shutil.copytree(untouched, tmp_path / "reference"))
    generator = torch.Generator().manual_seed(0)
    reweigh(
        reference,
        lambda tensors: [t.add_(noise * torch.randn(t.shape, generator=generator)) for t in tensors.values()],
    )
    ended = lethe_run(original, untouched, "--retrained", reference)
    assert ended.report is not None
    assert ended.report.verdict != "robust", ended.said


def between(world: World, path: Path) -> None:
    """Half of the way from the original to the unlearned model: some knowledge is left."""
    from safetensors.torch import load_file

    there = load_file(world.pair.unlearned / "model.safetensors")
    reweigh(path, lambda tensors: [t.lerp_(there[name], 0.5) for name, t in tensors.items()])


def test_the_original_is_no_reference(lethe_run: Run, original: Path, unlearned: Path) -> None:
    ended = lethe_run(original, unlearned, "--retrained", original)
    assert ended.report is not None
    assert ended.report.verdict != "robust"


@pytest.mark.parametrize("how", ["copies", "spaces", "numbered"])
def test_copies_of_a_few_items_are_a_few_items(
    audit: Run, world: World, original: Path, unlearned: Path, tmp_path: Path, how: str
) -> None:
    bundle = Path(shutil.copytree(world.bundle, tmp_path / "copies"))
    for name, field in (("verbmem/forget", "prompt"), ("knowmem/forget_qa", "question")):
        file = bundle / f"{name}.json"
        few = json.loads(file.read_text())[:3]
        items = []
        for number in range(ITEMS):
            item = dict(few[number % 3])
            item[field] += {"copies": "", "spaces": " " * (number // 3), "numbered": f" {number}"}[how]
            items.append(item)
        file.write_text(json.dumps(items))
    ended = audit(original, unlearned, bundle=bundle)
    assert ended.report is not None
    assert ended.report.verdict == "inconclusive"
    assert "too_few_items" in ended.reasons


@pytest.mark.parametrize("missing", ["verbmem", "knowmem/forget_qa.json", "privleak"])
def test_a_metric_that_is_missing_is_not_passed_over(
    audit: Run, world: World, original: Path, unlearned: Path, tmp_path: Path, missing: str
) -> None:
    bundle = Path(shutil.copytree(world.bundle, tmp_path / "less"))
    place = bundle / missing
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    if missing == "verbmem":
        shutil.rmtree(bundle / "raw")  # from which it would be derived
    ended = audit(original, unlearned, bundle=bundle)
    assert ended.report is not None
    assert ended.report.verdict == "inconclusive"
    assert ended.reasons & {"metric_missing", "membership_not_measured"}


def test_a_holdout_that_is_the_forget_set_tells_nothing(
    lethe_run: Run, world: World, original: Path, untouched: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(world.bundle, tmp_path / "same"))
    shutil.copyfile(bundle / "privleak" / "forget.json", bundle / "privleak" / "holdout.json")
    ended = lethe_run(original, untouched, bundle=bundle)
    assert ended.code != 0
    assert ended.report is None or ended.report.verdict != "robust"
