"""The stop rule: what it reads of any bundle, and what it decides."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.catalog.recipes import StopRule, check_texts
from app.errors import InvalidRequest, UnlearningFailed
from app.evidence.unlearning import Reading
from tests.support.engine.unlearning import raw_bundle, small, tensor_digests
from worker.engine.checkpoint import open_checkpoint
from worker.engine.muse.subject import Subject
from worker.engine.unlearning.stop_rule import StopReader, decide
from worker.engine.unlearning.unlearn import unlearn

NEVER = {"every": 1, "passages": 0, "answers": 0, "membership": 1, "utility_floor": 0}


def reading(*shares: float | None) -> Reading:
    return Reading(step=1, **dict(zip(("passages", "answers", "membership", "utility"), shares, strict=True)))


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        ((0.6, 0.3, 0.6, 0.9), "forgotten"),
        ((0.61, 0.3, 0.6, 0.9), None),
        ((0.6, 0.31, 0.6, 0.9), None),
        ((0.6, 0.3, 0.59, 0.9), None),
        ((None, 0.3, None, None), "forgotten"),
        ((None, 0.4, None, None), None),
        ((0.0, 0.0, 1.0, 0.47), "utility_floor"),
        ((0.9, 0.9, 0.1, 0.48), None),
    ],
)
def test_what_a_reading_decides(seen: Any, reason: str | None) -> None:
    assert decide(reading(*seen), reading(1, 1, 0, 0.8), StopRule()) == reason


def test_what_a_bundle_lacks_is_not_read_and_does_not_count(llama: Path) -> None:
    opened = open_checkpoint(llama, "cpu")
    subject = Subject(opened.model, opened.tokenizer, 512)
    full = StopReader(subject, raw_bundle()).read(3, lambda *_: None)
    assert full.step == 3
    assert all(share is not None for share in full.model_dump().values())
    poor = replace(raw_bundle(), verbmem=(), retain_qa=(), privleak_holdout=())
    seen = StopReader(subject, poor).read(3, lambda *_: None)
    assert (seen.passages, seen.membership, seen.utility) == (None, None, None)
    assert seen.answers == full.answers


def test_batches_do_not_change_a_reading_and_half_of_the_items_are_never_read(llama: Path) -> None:
    opened = open_checkpoint(llama, "cpu")
    bundle = raw_bundle()
    one, many = (
        StopReader(Subject(opened.model, opened.tokenizer, budget), bundle).read(0, lambda *_: None)
        for budget in (1, 8192)
    )
    assert one.model_dump() == pytest.approx(many.model_dump())
    halved = replace(
        bundle,
        verbmem=bundle.verbmem[::2],
        forget_qa=bundle.forget_qa[::2],
        retain_qa=bundle.retain_qa[::2],
        privleak_forget=bundle.privleak_forget[::2],
    )
    others: dict[str, Any] = {
        field: tuple(kept for item in getattr(halved, field) for kept in (item, getattr(bundle, field)[-1]))
        for field in ("verbmem", "forget_qa", "retain_qa", "privleak_forget")
    }
    unseen = replace(bundle, **others)
    other = StopReader(Subject(opened.model, opened.tokenizer, 8192), unseen).read(0, lambda *_: None)
    assert other.model_dump() == pytest.approx(many.model_dump())


def test_a_model_that_names_no_window_is_read_whole(llama: Path) -> None:
    """ALiBi and state-space models have no `max_position_embeddings`."""
    opened = open_checkpoint(llama, "cpu")
    subject, lengths = Subject(opened.model, opened.tokenizer, 8192), []
    for window in (opened.model.config.max_position_embeddings, 0):
        opened.model.config.max_position_embeddings = window
        lengths.append([asked.truth for group in StopReader(subject, raw_bundle())._sets for asked in group])
    assert lengths[0] == lengths[1]


def test_it_stops_at_the_first_reading_that_is_forgotten(llama: Path, tmp_path: Path) -> None:
    """A random model answers nothing; what it lacks here is that members look like strangers."""
    opened = open_checkpoint(llama, "cpu")
    start = StopReader(Subject(opened.model, opened.tokenizer, 8192), raw_bundle()).read(0, lambda *_: None)
    assert start.membership is not None
    rule = {"every": 2, "passages": 1, "answers": 1, "membership": start.membership + 0.05, "utility_floor": 0}
    chosen = small("control", "ga", stop=rule, max_steps=40, learning_rate=1e-2)
    record = unlearn(llama, tmp_path / "out", raw_bundle(), chosen)
    assert record.stopped == "forgotten"
    assert record.steps == record.readings[-1].step == len(record.losses) < 40
    assert [seen.step for seen in record.readings] == list(range(0, record.steps + 1, 2))
    assert all((seen.membership or 0) < rule["membership"] for seen in record.readings[:-1])
    assert (record.readings[-1].membership or 0) >= rule["membership"]
    # What was written is the model of that reading.
    same = small("control", "ga", max_steps=record.steps, learning_rate=1e-2)
    unlearn(llama, tmp_path / "same", raw_bundle(), same)
    assert tensor_digests(tmp_path / "same") == tensor_digests(tmp_path / "out")


def test_an_original_that_is_forgotten_already_is_refused(llama: Path, tmp_path: Path) -> None:
    rule = {"passages": 1, "answers": 1, "membership": 0}
    with pytest.raises(UnlearningFailed) as failed:
        unlearn(llama, tmp_path / "out", raw_bundle(), small("sure", "ga", stop=rule))
    assert failed.value.code == "nothing_to_forget"


def test_a_stop_rule_needs_something_to_read() -> None:
    counts = {"raw/forget": 3, "raw/retain": 3, "knowmem/retain_qa": 3, "knowmem/forget_qa": 3, "privleak/forget": 2}
    with pytest.raises(InvalidRequest, match=r"verbmem/forget\.json") as refused:
        check_texts(small("sure", "ga", stop=NEVER), counts)
    assert refused.value.code == "forget_set_incomplete"
    check_texts(small("sure", "ga"), counts)
    check_texts(small("sure", "ga", stop=NEVER), counts | {"privleak/holdout": 1})
