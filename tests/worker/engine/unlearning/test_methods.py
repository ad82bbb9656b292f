"""`unlearn` with every method and loss: what is trained, what is written, and when it is refused or gives up."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from app.catalog.recipes import LOSSES, recipe
from app.checkpoints.format.digests import digest
from app.checkpoints.format.files import inspect
from app.checkpoints.pair import check_pair
from app.errors import AppError, CheckpointRefused, InvalidRequest, UnlearningFailed
from app.evidence.unlearning import LossPoint, Unlearned
from app.reports.rendering.model_card import model_card
from tests.support.engine.unlearning import raw_bundle, small, tensor_digests
from tests.support.factories import tiny_checkpoint
from worker.engine.checkpoint import open_checkpoint
from worker.engine.unlearning.trainer import RUNAWAY_STEPS
from worker.engine.unlearning.unlearn import unlearn


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_and_says_what_it_did(llama: Path, tmp_path: Path, loss: str) -> None:
    stages: dict[str, tuple[int, int]] = {}
    points: list[LossPoint] = []
    out = tmp_path / "new" / "out"
    record = unlearn(
        llama,
        out,
        raw_bundle(),
        small("plain", loss),
        progress=lambda stage, done, total: stages.__setitem__(stage, (done, total)),
        on_loss=points.append,
    )
    assert record.losses == points
    assert [point.step for point in points] == [1, 2, 3]
    assert all((point.retain is None) == ("_" not in loss) for point in points)
    for point in points:
        # The two nearly cancel: what counts is how large they are.
        assert point.loss == pytest.approx(point.forget + (point.retain or 0), abs=1e-5 * abs(point.forget))
        assert point.learning_rate == 1e-3
        assert point.gradient_norm
    assert stages["train"] == (3, 3)
    assert stages["save"] == (1, 1)
    assert ("reference" in stages) == loss.startswith("npo")
    if loss == "ga":
        assert points[2].forget < points[0].forget
    assert (record.stopped, record.steps, record.steps_planned, record.resumed) == ("steps", 3, 3, 0)
    assert record.parameters_trained == record.parameters_total
    assert record.parameters_changed > 0.5 * record.parameters_total
    assert record.digest == digest(out) != record.original.digest == digest(llama)
    assert Unlearned.model_validate_json((out / "unlearning.json").read_text()) == record
    assert record.digest in (out / "README.md").read_text()
    check_pair(inspect(llama), inspect(out))
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*(path.name for path in llama.iterdir()), "README.md", "unlearning.json"]
    )
    for name in ("config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (llama / name).read_bytes()


def test_npo_begins_at_two_over_beta_log_two_and_klr_at_nothing(llama: Path, tmp_path: Path) -> None:
    """At the original the log-ratio is 0, whatever raw logits are, and so is the divergence."""
    first = unlearn(llama, tmp_path / "out", raw_bundle(), small("plain", "npo_klr", beta=0.5)).losses[0]
    assert first.forget == pytest.approx(2 / 0.5 * 0.693147, rel=1e-3)
    assert first.retain == pytest.approx(0, abs=1e-5)


def test_lora_changes_the_linear_layers_alone_by_updates_of_its_rank(llama: Path, tmp_path: Path) -> None:
    record = unlearn(llama, tmp_path / "out", raw_bundle(), small("lora", "ga_gdr", lora_rank=2))
    before, after = (load_file(path / "model.safetensors") for path in (llama, tmp_path / "out"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "proj" in name}
    for name in moved:
        assert int(torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3)) <= 2
    assert record.parameters_trained < 0.1 * record.parameters_total
    assert record.parameters_changed == sum(int((before[name] != after[name]).sum()) for name in moved)


def test_loras_merged_checkpoint_computes_what_the_adapters_did(llama: Path, tmp_path: Path) -> None:
    """The last reading of the stop rule was of the adapters; the checkpoint must read the same."""
    stop = {"every": 3, "passages": 0, "answers": 0, "membership": 1}
    record = unlearn(llama, tmp_path / "out", raw_bundle(), small("lora", "ga_gdr", stop=stop, learning_rate=1e-2))
    again = small("plain", "ga_gdr", stop=stop, learning_rate=1e-9, max_steps=1)
    start = unlearn(tmp_path / "out", tmp_path / "again", raw_bundle(), again).readings[0]
    assert start.model_dump(exclude={"step"}) == pytest.approx(record.readings[-1].model_dump(exclude={"step"}))


def test_lora_on_chosen_layers_and_a_layer_that_is_none(llama: Path, tmp_path: Path) -> None:
    unlearn(llama, tmp_path / "out", raw_bundle(), small("lora", "ga", lora_target_modules=["q_proj"]))
    before, after = tensor_digests(llama), tensor_digests(tmp_path / "out")
    assert {name for name in before if before[name] != after[name]} == {name for name in before if "q_proj" in name}
    with pytest.raises(InvalidRequest, match=r"lm_head is no linear layer of the decoder; known: .*q_proj"):
        unlearn(llama, tmp_path / "no", raw_bundle(), small("lora", "ga", lora_target_modules=["lm_head"]))


def test_adapters_that_did_not_move_are_an_error(llama: Path, tmp_path: Path) -> None:
    # GDR on one text that is also forgotten: with alpha 1 the two losses cancel, and nothing moves.
    same = raw_bundle(raw_forget=["Arvid sold a red lantern."], raw_retain=["Arvid sold a red lantern."])
    with pytest.raises(UnlearningFailed, match="no adapter moved") as failed:
        unlearn(llama, tmp_path / "out", same, small("lora", "ga_gdr", batch_size=1, lora_dropout=0.0))
    assert failed.value.code == "adapters_unmoved"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["plain", "lora", "sure"])
def test_gradient_checkpointing_changes_nothing_but_memory(llama: Path, tmp_path: Path, method: str) -> None:
    for checkpointing in (False, True):
        given = small(method, "npo_klr", gradient_checkpointing=checkpointing, lora_dropout=0.0, modules="linear")
        unlearn(llama, tmp_path / str(checkpointing), raw_bundle(), given)
    plain, checkpointed = (load_file(tmp_path / name / "model.safetensors") for name in ("False", "True"))
    for name, weight in plain.items():
        torch.testing.assert_close(checkpointed[name], weight, rtol=1e-4, atol=1e-6)


def test_gradient_accumulation_is_one_larger_batch(llama: Path, tmp_path: Path) -> None:
    unlearn(llama, tmp_path / "one", raw_bundle(), small("plain", "ga_gdr", batch_size=4, max_steps=1))
    given = small("plain", "ga_gdr", batch_size=2, gradient_accumulation=2, max_steps=1)
    unlearn(llama, tmp_path / "two", raw_bundle(), given)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    original = load_file(llama / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    # AdamW's first step is the gradient's sign: where that is nearly 0, the last bit decides.
    step = one[name] - original[name]
    assert (two[name] - original[name] - step).norm() <= 0.1 * step.norm()


def test_epochs_are_passes_over_the_forget_set(llama: Path, tmp_path: Path) -> None:
    chosen = small("plain", "ga", max_steps=None, epochs=1.5, batch_size=2)
    assert unlearn(llama, tmp_path / "out", raw_bundle(), chosen).steps_planned == 5  # 6 texts, 3 steps a pass


def test_long_texts_are_read_in_pieces_and_none_is_lost(llama: Path, tmp_path: Path) -> None:
    chosen = small("plain", "ga", max_steps=None, epochs=1, batch_size=1, max_length=16)
    whole = small("plain", "ga", max_steps=None, epochs=1, batch_size=1)
    pieces = unlearn(llama, tmp_path / "a", raw_bundle(), chosen).steps_planned
    assert pieces > unlearn(llama, tmp_path / "b", raw_bundle(), whole).steps_planned == 6


@pytest.mark.parametrize("architecture", ["llama-tied", "neox", "gpt2", "qwen2"])
@pytest.mark.parametrize("method", ["sure", "lora", "control"])
def test_other_architectures_in_their_own_dtype(tmp_path: Path, architecture: str, method: str) -> None:
    original = tiny_checkpoint(tmp_path / "original", architecture, dtype=torch.bfloat16)
    chosen = small(method, "ga_klr", learning_rate=1e-2, saliency_percentile=50)
    record = unlearn(original, tmp_path / "out", raw_bundle(), chosen)
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    assert record.original.dtype == "BF16"
    assert record.parameters_changed
    before = tensor_digests(original)
    now = tensor_digests(tmp_path / "out")
    moved = {name for name in before if before[name] != now[name]}
    assert moved
    if record.saliency is not None:
        salient = {module.module for module in record.saliency if module.updated}
        renamed = {"embed_out.weight": "lm_head"}  # transformers' name for it
        assert {renamed.get(name, name.removesuffix(".weight")) for name in moved} <= salient
    open_checkpoint(tmp_path / "out", "cpu")


def test_a_checkpoint_in_shards_stays_one(llama: Path, tmp_path: Path) -> None:
    original = tmp_path / "original"
    opened = open_checkpoint(llama, "cpu")
    opened.model.save_pretrained(original, max_shard_size="100KB")
    opened.tokenizer.save_pretrained(original)
    # What is not in the index is no part of the model, and would still hold what was to be forgotten.
    shutil.copyfile(llama / "model.safetensors", original / "consolidated.safetensors")
    record = unlearn(original, tmp_path / "out", raw_bundle(), small("sure", "ga_gdr"))
    names = {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    assert len(names) > 2
    assert "consolidated.safetensors" not in names
    single = unlearn(llama, tmp_path / "single", raw_bundle(), small("sure", "ga_gdr"))
    assert tensor_digests(tmp_path / "out") == tensor_digests(tmp_path / "single")
    assert record.parameters_changed == single.parameters_changed


def test_training_in_bfloat16_leaves_the_rest_of_a_float32_checkpoint_alone(llama: Path, tmp_path: Path) -> None:
    chosen = small("sure", "ga_gdr", dtype="bfloat16", learning_rate=1e-2)
    record = unlearn(llama, tmp_path / "out", raw_bundle(), chosen)
    assert record.engine.dtype == "bfloat16"
    before, after = tensor_digests(llama), tensor_digests(tmp_path / "out")
    salient = {f"{module.module}.weight" for module in record.saliency or [] if module.updated}
    assert {name for name in before if before[name] != after[name]} == salient


def test_dropout_of_the_original_is_off(tmp_path: Path) -> None:
    quiet = tiny_checkpoint(tmp_path / "quiet", "gpt2", attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)
    noisy = tiny_checkpoint(tmp_path / "noisy", "gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    for name, path in (("a", quiet), ("b", noisy)):
        unlearn(path, tmp_path / name, raw_bundle(), small("plain", "npo_klr"))
    assert tensor_digests(tmp_path / "a") == tensor_digests(tmp_path / "b")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["resid_pdrop"] == 0.5


@pytest.mark.parametrize(
    ("loss", "missing", "said"),
    [
        ("ga", "raw_forget", "raw/forget.json"),
        ("ga_gdr", "raw_retain", "raw/retain.json"),
        ("npo_klr", "raw_retain", "raw/retain.json"),
    ],
)
def test_a_missing_file_is_named(llama: Path, tmp_path: Path, loss: str, missing: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as refused:
        unlearn(llama, tmp_path / "out", raw_bundle(**{missing: []}), small("plain", loss))
    assert refused.value.code == "forget_set_incomplete"


def test_a_loss_without_a_part_on_retained_texts_needs_no_retain_text(llama: Path, tmp_path: Path) -> None:
    assert unlearn(llama, tmp_path / "out", raw_bundle(raw_retain=[]), small("plain", "npo")).steps == 3


def test_what_is_there_is_not_overwritten(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(InvalidRequest, match="is there already"):
        unlearn(llama, tmp_path / "out", raw_bundle(), small("plain", "ga"))


@pytest.mark.parametrize("work", ["out", "out/state"])
def test_states_do_not_lie_where_the_result_goes(llama: Path, tmp_path: Path, work: str) -> None:
    with pytest.raises(InvalidRequest, match="take one elsewhere"):
        unlearn(llama, tmp_path / "out", raw_bundle(), small("plain", "ga"), work=tmp_path / work)
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_no_number_stops_it_with_nothing_written(llama: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"learning_rate": 1.0, "max_steps": 60, "gradient_accumulation": 1}
    with pytest.raises(UnlearningFailed, match="no good state but the original") as failed:
        unlearn(llama, tmp_path / "out", raw_bundle(), small("plain", "ga_gdr", dtype="bfloat16", **given, alpha=1e38))
    assert failed.value.code in {"non_finite", "runaway"}
    assert list(tmp_path.iterdir()) == []


def test_a_runaway_retain_loss_goes_back_to_the_last_good_state(llama: Path, tmp_path: Path) -> None:
    """A warm-up so steep that training is sane at first and then leaves all bounds."""
    chosen = small(
        "control",
        "ga_gdr",
        alpha=0.0,
        learning_rate=0.3,
        schedule="linear",
        warmup_ratio=0.95,
        max_steps=80,
        checkpoint_every=1,
    )
    record = unlearn(
        tiny_checkpoint(tmp_path / "original", initializer_range=0.02), tmp_path / "out", raw_bundle(), chosen
    )
    assert record.stopped == "runaway"
    assert 0 < record.steps < len(record.losses) < 80
    limit = max(math.log(384), 2 * (record.losses[0].retain or 0))
    assert all((point.retain or 0) > limit for point in record.losses[-RUNAWAY_STEPS:])
    assert (record.losses[record.steps].retain or 0) <= limit  # the loss of the weights that were kept
    assert "last good state" in (tmp_path / "out" / "README.md").read_text()


def test_an_unknown_method_or_loss_is_refused() -> None:
    for given, code in ((("magic", "ga"), "unknown_method"), (("sure", "rmu"), "unknown_loss")):
        with pytest.raises(AppError) as refused:
            recipe(*given)
        assert refused.value.code == code


def test_experts_that_are_held_in_another_form_than_stored_are_refused(tmp_path: Path) -> None:
    original = tiny_checkpoint(tmp_path / "original", "mixtral")
    with pytest.raises(CheckpointRefused, match="cannot be written back"):
        unlearn(original, tmp_path / "out", raw_bundle(), small("sure", "ga_gdr"))


def test_the_card_of_an_audited_model_has_its_verdict(llama: Path, tmp_path: Path) -> None:
    record = unlearn(llama, tmp_path / "out", raw_bundle(), small("lora", "ga_gdr"))
    assert "\n## Audit\n\nRobust at rtn-int4.\n" in model_card(record, "Robust at rtn-int4.")
    assert model_card(record) == (tmp_path / "out" / "README.md").read_text()
