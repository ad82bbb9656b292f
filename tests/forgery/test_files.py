"""What is measured is what was named: the digest is that of the bytes that were loaded."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.checkpoints.format.digests import Expected, digest, identity
from app.checkpoints.format.files import inspect
from app.errors import CheckpointRefused
from app.forget_sets.bundle import parse, read_directory
from tests.support.forgery import PLAN, Run, World, edit
from tests.support.judgement.evaluations import scores_of
from tests.support.service import Service
from worker.engine.audit import audit as audit_here
from worker.engine.checkpoint import open_checkpoint
from worker.engine.evaluate import evaluate

pytestmark = pytest.mark.timeout(1200)


def overwrite(file: Path, source: Path) -> None:
    """Write another file's bytes in place; size and times stay."""
    before, data = file.stat(), source.read_bytes()
    assert len(data) == before.st_size
    with file.open("r+b") as opened:
        opened.write(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_weights_overwritten_after_registration_are_not_filed_under_the_old_digest(
    service: Service, over_http: Run, original: Path, unlearned: Path, untouched: Path
) -> None:
    """Registered: a model that forgot nothing, swapped for one that did before a worker comes."""
    weights = untouched / "model.safetensors"
    forged = over_http(original, untouched, between=lambda: overwrite(weights, unlearned / "model.safetensors"))
    assert forged.report is not None
    assert forged.report.verdict != "robust"
    assert "checkpoint_changed" in forged.reasons
    shutil.copyfile(original / "model.safetensors", weights)
    honest = over_http(original, untouched)
    assert honest.report is not None
    assert (honest.report.verdict, honest.reasons >= {"same_weights"}) == ("not_forgotten", True)


def test_an_originals_digest_holds_no_scores_of_other_weights(
    service: Service, over_http: Run, original: Path, unlearned: Path
) -> None:
    kept = (original / "model.safetensors").read_bytes()
    forged = over_http(
        original, unlearned, between=lambda: overwrite(original / "model.safetensors", unlearned / "model.safetensors")
    )
    assert "checkpoint_changed" in forged.reasons
    (original / "model.safetensors").write_bytes(kept)
    honest = over_http(original, unlearned)
    assert honest.report is not None
    full = next(e for e in honest.report.evidence if (e.role, e.precision) == ("original", "full"))
    assert min(scores_of(full.evaluation, "verbmem").scores) > 0.9


def test_a_registered_checkpoint_that_was_overwritten_is_refused_when_it_is_named_again(
    service: Service, original: Path, unlearned: Path, world: World
) -> None:
    made = service.made(service.post("/v1/checkpoints", json={"uri": str(unlearned)}))
    overwrite(unlearned / "model.safetensors", original / "model.safetensors")
    forget_set = service.made(service.post("/v1/forget-sets", json={"uri": str(world.bundle)}))
    body = {"original": str(original), "unlearned": made["id"], "forget_set": forget_set["id"]}
    service.refused(service.post("/v1/audits", json=body), 422, "checkpoint_changed")


@pytest.mark.parametrize("moment", [0, 7])
def test_weights_replaced_while_they_are_read_are_never_measured_under_the_digest_that_was_named(
    world: World, original: Path, unlearned: Path, moment: int
) -> None:
    named = identity(inspect(original))
    bundle = parse(read_directory(world.bundle))

    def replace(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("checkpoint", moment):
            overwrite(original / "model.safetensors", unlearned / "model.safetensors")

    # Several tensors are read at once: later than at the start, all may be in memory before the file is replaced.
    scores, code = [1.0], "checkpoint_changed"
    try:
        found = evaluate(original, "full", bundle, expected=Expected(checkpoint=named.digest), progress=replace)
        scores = scores_of(found, "verbmem").scores if moment else []
    except CheckpointRefused as refused:
        code = refused.code
    assert code == "checkpoint_changed"
    assert scores
    assert min(scores) > 0.9


def test_files_that_the_config_names_elsewhere_are_refused(audit: Run, original: Path, unlearned: Path) -> None:
    shutil.move(original / "model.safetensors", original / "other.safetensors")
    shutil.copyfile(unlearned / "model.safetensors", original / "model.safetensors")
    edit(original / "config.json", transformers_weights="other.safetensors")
    ended = audit(original, unlearned)
    assert ended.code == 3
    assert "transformers_weights" in ended.said


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer_file", "/etc/hostname"), ("vocab_file", "../x.json"), ("configuration_files", ["config.4.json"]),
        ("custom_generate", "generate.py"), ("auto_map", {"AutoTokenizer": ["evil.T", None]}),
    ],
)  # fmt: skip
def test_no_config_names_another_file_or_code(
    lethe_run: Run, original: Path, unlearned: Path, file: str, key: str, value: object
) -> None:
    edit(unlearned / file, **{key: value})
    ended = lethe_run(original, unlearned)
    assert ended.code == 3
    assert key in ended.said


@pytest.mark.parametrize("name", ["README-00001.safetensors", ".hidden.safetensors"])
def test_a_shard_is_in_the_digest_whatever_it_is_called(
    original: Path, unlearned: Path, tmp_path: Path, name: str
) -> None:
    """Two models whose visible files are the same."""
    found = []
    for number, source in enumerate((original, unlearned)):
        path = tmp_path / f"sharded-{number}"
        shutil.copytree(original, path)
        cut(path, source, name)
        found.append(path)
    assert {file.name: file.read_bytes() for file in found[0].iterdir() if file.name != name} == {
        file.name: file.read_bytes() for file in found[1].iterdir() if file.name != name
    }
    assert digest(found[0]) != digest(found[1])
    a, b = (open_checkpoint(path, "cpu") for path in found)
    assert a.identity.tensors != b.identity.tensors


def test_a_hidden_shard_gives_no_other_model_its_scores(audit: Run, original: Path, unlearned: Path) -> None:
    """Audited first: one that forgot; then one that did not, in a folder that looks the same."""
    other = Path(shutil.copytree(unlearned, original.parent / "other"))
    cut(unlearned, unlearned, "README.safetensors")
    cut(other, original, "README.safetensors")
    first = audit(original, unlearned)
    second = audit(original, other)
    assert first.report is not None
    assert second.report is not None
    assert first.report.verdict == "robust"
    assert second.report.verdict != "robust"
    found = [report.checkpoints["unlearned"] for report in (first.report, second.report)]
    assert found[0].digest != found[1].digest


def cut(path: Path, source: Path, hidden: str) -> None:
    """Cut a checkpoint into two shards: the linears of `source`, hidden, and the rest of its own."""
    own, theirs = load_file(path / "model.safetensors"), load_file(source / "model.safetensors")
    (path / "model.safetensors").unlink()
    parts = {
        hidden: {name: theirs[name] for name in own if "_proj" in name},
        "model-1.safetensors": {name: own[name] for name in own if "_proj" not in name},
    }
    for name, tensors in parts.items():
        save_file(tensors, path / name, metadata={"format": "pt"})
    index = {"weight_map": {tensor: name for name, tensors in parts.items() for tensor in tensors}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("where", ["../elsewhere/model.safetensors", "/model.safetensors", "sub/model.safetensors"])
def test_an_index_that_points_elsewhere_is_refused(audit: Run, original: Path, unlearned: Path, where: str) -> None:
    cut(unlearned, unlearned, "model-2.safetensors")
    for folder in ("sub", "../elsewhere"):
        (unlearned / folder).mkdir()
        shutil.copyfile(unlearned / "model-2.safetensors", unlearned / folder / "model.safetensors")
    index = json.loads((unlearned / "model.safetensors.index.json").read_text())
    index["weight_map"] = {
        name: where if file == "model-2.safetensors" else file for name, file in index["weight_map"].items()
    }
    (unlearned / "model.safetensors.index.json").write_text(json.dumps(index))
    ended = audit(original, unlearned)
    assert ended.code == 3
    assert "lacks 1 of 2 shards" in ended.said


def test_what_is_no_part_of_the_checkpoint_never_reaches_the_loader(
    world: World, unlearned: Path, original: Path
) -> None:
    """Files that transformers would read if they lay in the folder that it is given."""
    before = open_checkpoint(unlearned, "cpu")
    tensors = load_file(original / "model.safetensors")
    torch.save(tensors, unlearned / "pytorch_model.bin")
    save_file(tensors, unlearned / "model.variant.safetensors", metadata={"format": "pt"})
    (unlearned / "tokenizer.4.0.json").write_text("{}")
    (unlearned / "chat_template.jinja").write_text("{{ evil }}")
    (unlearned / "additional_chat_templates").mkdir()
    edit(unlearned / "tokenizer_config.json", fast_tokenizer_files=["tokenizer.4.0.json"])
    after = open_checkpoint(unlearned, "cpu")
    for (name, ours), theirs in zip(before.model.state_dict().items(), after.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert after.tokenizer("Who?") == before.tokenizer("Who?")
    assert after.identity.tensors == before.identity.tensors


def test_a_hub_caches_folder_of_links_works_as_it_is(lethe_run: Run, world: World, tmp_path: Path) -> None:
    roles = []
    for role in ("original", "unlearned"):
        source: Path = getattr(world.pair, role)
        blobs, snapshot = tmp_path / role / "blobs", tmp_path / role / "snapshots" / "abc"
        shutil.copytree(source, blobs)
        snapshot.mkdir(parents=True)
        for file in blobs.iterdir():
            (snapshot / file.name).symlink_to(Path("..", "..", "blobs", file.name))
        assert digest(snapshot) == digest(source)
        roles.append(snapshot)
    ended = lethe_run(*roles, "--retrained", world.pair.retrained)
    assert ended.code == 0, ended.said


def test_the_same_tensors_in_other_files_share_their_evaluations(
    service: Service, over_http: Run, original: Path, unlearned: Path
) -> None:
    first = over_http(original, unlearned)
    cut(original, original, "model-2.safetensors")
    cut(unlearned, unlearned, "model-2.safetensors")
    again = over_http(original, unlearned)
    assert first.report is not None
    assert again.report is not None
    assert all(evidence.reused for evidence in again.report.evidence)
    assert again.report.verdict == first.report.verdict


def test_an_audit_as_a_library_reads_each_file_once_per_attempt(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes asked of the kernel for weights: for the digests, for each evaluation, for the diagnosis."""
    read = 0
    whole: Callable[..., int] = os.preadv

    def counting(*args: object) -> int:
        nonlocal read
        count = whole(*args)
        read += count
        return count

    monkeypatch.setattr(os, "preadv", counting)
    audit_here(world.pair.original, world.pair.unlearned, parse(read_directory(world.bundle)), precisions=PLAN)
    files = [inspect(path) for path in (world.pair.original, world.pair.unlearned)]
    assert read == sum(one.weights.size(name) for one in files for name in one.tensors) * (1 + len(PLAN) + 1)
