"""A config is no hiding place: every role is run with the original's interface, and what differs is refused or told."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.forgery import Run, World, edit, frequent_tokens, reweigh
from tests.support.judgement.evaluations import scores_of
from worker.engine.checkpoint import open_checkpoint

pytestmark = pytest.mark.timeout(1200)


def test_tuned_end_tokens_do_not_make_a_model_forget(audit: Run, world: World, original: Path, untouched: Path) -> None:
    edit(untouched / "generation_config.json", eos_token_id=[2, *frequent_tokens(world)])
    refused = audit(original, untouched)
    assert refused.code == 3
    assert "eos_token_id" in refused.said
    assert "allowed_differences" in refused.said
    told = audit(original, untouched, allowed_differences=["eos_token_id"])
    assert told.report is not None
    assert told.report.verdict == "not_forgotten"
    assert "same_weights" in told.reasons
    assert any("eos_token_id" in alarm.sentence for alarm in told.report.alarms)
    assert "eos_token_id" in told.said


def test_end_tokens_of_an_unlearned_model_that_did_not_forget_are_the_originals(
    lethe_run: Run, world: World, original: Path, untouched: Path
) -> None:
    """The weights differ a little, so that only the scores can tell."""
    reweigh(untouched, lambda tensors: tensors["model.norm.weight"].mul_(1.001))
    edit(untouched / "generation_config.json", eos_token_id=[2, *frequent_tokens(world)])
    told = lethe_run(original, untouched, allowed_differences=["eos_token_id"])
    assert told.report is not None
    assert told.report.verdict == "not_forgotten"
    unlearned = next(e for e in told.report.evidence if (e.role, e.precision) == ("unlearned", "full"))
    assert unlearned.evaluation is not None
    assert min(scores_of(unlearned.evaluation, "verbmem").scores) > 0.9


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_position_embeddings", 134), ("num_attention_heads", 2), ("rms_norm_eps", 0.1), ("hidden_act", "relu"),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 1.0}), ("attention_bias", True),
    ],
)  # fmt: skip
def test_a_field_of_the_config_that_differs_is_refused(
    audit: Run, original: Path, untouched: Path, field: str, value: object
) -> None:
    edit(untouched / "config.json", **{field: value})
    ended = audit(original, untouched)
    assert ended.code == 3
    assert f"config.{field}" in ended.said


def test_a_window_that_the_policy_lets_differ_is_the_originals_all_the_same(
    lethe_run: Run, original: Path, untouched: Path
) -> None:
    edit(untouched / "config.json", max_position_embeddings=134)
    told = lethe_run(original, untouched, allowed_differences=["config.max_position_embeddings"])
    assert told.report is not None
    assert told.report.verdict == "not_forgotten"
    for evidence in told.report.evidence:
        assert evidence.evaluation is not None
        assert scores_of(evidence.evaluation, "verbmem").flags == {}
    assert any("max_position_embeddings" in alarm.sentence for alarm in told.report.alarms)


@pytest.mark.parametrize("field", ["rope_parameters", "rms_norm_eps", "attention_bias"])
def test_a_field_that_only_one_config_names_is_compared_with_what_its_absence_means(
    audit: Run, original: Path, untouched: Path, field: str
) -> None:
    """The original leaves it to transformers' default, the other names another value."""
    other: dict[str, Any] = {
        "rope_parameters": {"rope_type": "default", "rope_theta": 77.0}, "rms_norm_eps": 0.5, "attention_bias": True,
    }  # fmt: skip
    content = json.loads((original / "config.json").read_text())
    content.pop(field)
    (original / "config.json").write_text(json.dumps(content))
    edit(untouched / "config.json", **{field: other[field]})
    reweigh(untouched, lambda tensors: tensors["model.norm.weight"].mul_(1.001))
    ended = audit(original, untouched)
    assert ended.code != 0
    if ended.report is None:
        assert f"config.{field}" in ended.said
    else:
        # Over HTTP no worker has looked yet when the request is accepted.
        assert ended.report.verdict != "robust"


def test_a_default_spelled_out_is_no_difference(lethe_run: Run, world: World, original: Path, unlearned: Path) -> None:
    content = json.loads((original / "config.json").read_text())
    for field in ("attention_bias", "mlp_bias", "head_dim", "pretraining_tp", "rope_parameters"):
        content.pop(field)
    (original / "config.json").write_text(json.dumps(content))
    ended = lethe_run(original, unlearned, "--retrained", world.pair.retrained)
    assert ended.code == 0, ended.said
    assert ended.report is not None
    assert ended.report.alarms == []


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"}),
        ("tokenizer_config.json", {"eos_token": "the"}),
        ("tokenizer_config.json", {"bos_token": "of"}),
        ("special_tokens_map.json", {"eos_token": "the"}),
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}),
    ],
)
def test_a_tokenizer_that_differs_is_refused(
    audit: Run, original: Path, untouched: Path, file: str, changes: dict[str, object]
) -> None:
    if file == "special_tokens_map.json":
        edit(original / file, eos_token="</s>")
    edit(untouched / file, **changes)
    ended = audit(original, untouched)
    assert ended.code == 3
    assert file.removesuffix(".json") in ended.said


def test_the_tokenizer_is_the_originals_whatever_lies_beside_the_weights(world: World, untouched: Path) -> None:
    honest = open_checkpoint(world.pair.original, "cpu")
    edit(untouched / "tokenizer.json", normalizer={"type": "Lowercase"})
    edit(untouched / "tokenizer_config.json", bos_token="of", tokenizer_class="GPT2Tokenizer")
    (untouched / "added_tokens.json").write_text('{"Arvid": 7}')
    opened = open_checkpoint(untouched, "cpu", interface=honest.files)
    text = "Who Painted THE old mill?"
    assert opened.tokenizer(text)["input_ids"] == honest.tokenizer(text)["input_ids"]


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
@pytest.mark.parametrize("who", ["original", "untouched"])
def test_a_config_fetches_no_kernel(audit: Run, original: Path, untouched: Path, who: str, key: str) -> None:
    edit({"original": original, "untouched": untouched}[who] / "config.json", **{key: "somebody/attention"})
    ended = audit(original, untouched)
    assert ended.code == 3
    assert "somebody/attention" in ended.said


def test_every_role_is_run_with_the_originals_attention(world: World, original: Path, unlearned: Path) -> None:
    edit(original / "config.json", attn_implementation="eager")
    edit(unlearned / "config.json", attn_implementation="sdpa")
    first = open_checkpoint(original, "cpu")
    second = open_checkpoint(unlearned, "cpu", interface=first.files)
    assert first.model.config._attn_implementation == second.model.config._attn_implementation == "eager"


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_a_name_given_twice_in_a_config_is_refused(audit: Run, original: Path, untouched: Path, file: str) -> None:
    """Of two values one parser takes the first and another the last."""
    text = (untouched / file).read_text().rstrip().removesuffix("}")
    (untouched / file).write_text(f'{text}, "eos_token_id": 5, "eos_token_id": 2}}')
    ended = audit(original, untouched)
    assert ended.code == 3
    assert "twice" in ended.said


def test_suppressed_tokens_are_a_difference(audit: Run, original: Path, untouched: Path) -> None:
    """They do nothing here, and hide what the model knows where it is deployed."""
    edit(untouched / "generation_config.json", suppress_tokens=[5, 6, 7])
    ended = audit(original, untouched)
    assert ended.code == 3
    assert "generation_config.suppress_tokens" in ended.said


def test_a_config_within_the_config_shrinks_no_window(lethe_run: Run, original: Path, untouched: Path) -> None:
    """Both roles say it, so that nothing differs."""
    reweigh(untouched, lambda tensors: tensors["model.norm.weight"].mul_(1.001))
    for path in (original, untouched):
        edit(path / "config.json", max_position_embeddings=134)
    ended = lethe_run(original, untouched)
    assert ended.code != 0
    assert ended.report is None or ended.report.verdict in ("inconclusive", "not_forgotten")


def test_end_tokens_of_both_roles_that_end_every_answer_prove_nothing(
    lethe_run: Run, world: World, original: Path, untouched: Path
) -> None:
    reweigh(untouched, lambda tensors: tensors["model.norm.weight"].mul_(1.001))
    for path in (original, untouched):
        edit(path / "generation_config.json", eos_token_id=[2, *frequent_tokens(world)])
    ended = lethe_run(original, untouched)
    assert ended.report is not None
    assert ended.report.verdict != "robust"


def test_a_reference_of_another_kind_is_refused(
    lethe_run: Run, world: World, original: Path, unlearned: Path, tmp_path: Path
) -> None:
    retrained = Path(shutil.copytree(world.pair.retrained, tmp_path / "retrained"))
    edit(retrained / "config.json", rms_norm_eps=0.1)
    ended = lethe_run(original, unlearned, "--retrained", retrained)
    assert ended.code == 3
    assert "config.rms_norm_eps" in ended.said


@pytest.mark.parametrize(
    "content",
    ['{"a": ' * 900 + "1" + "}" * 900, '{"a": ' + "[" * 900 + "]" * 900 + "}", '{"\\ud800": "\\udfff"}', '{"a": NaN}'],
)
@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_odd_json_is_refused_or_compared_and_never_an_error_of_ours(
    audit: Run, original: Path, untouched: Path, file: str, content: str
) -> None:
    text = (untouched / file).read_text().rstrip().removesuffix("}")
    (untouched / file).write_text(f"{text}, {content.removeprefix('{')}")
    ended = audit(original, untouched)
    assert ended.code in (1, 3)
    assert ended.report is None or ended.report.verdict == "not_forgotten"
