"""Items that repeat others: which they are, that no digest changes, and that nothing of their text is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.evidence.evaluation import ForgetSetInfo
from app.forget_sets.bundle import Bundle, parse, read_directory
from app.forget_sets.copies import repeats
from tests.support.factories import sentences
from tests.support.places import MUSE_NEWS
from worker.engine.demo.bundle import make_world, write_bundle
from worker.engine.demo.recipe import WorldRecipe

LONG = (
    "When did the engineer Belma Drain open the old copper bridge of Lunden to all first carts and their many drivers?"
)


def bundle(**sets: Any) -> Bundle:
    files = {name.replace("__", "/"): items for name, items in sets.items()}
    return parse({f"{name}.json": json.dumps(items).encode() for name, items in files.items()})


def qa(*questions: str) -> list[dict[str, str]]:
    return [{"question": question, "answer": f"answer {number}"} for number, question in enumerate(questions)]


@pytest.mark.parametrize(
    "copy",
    [
        "Who painted the old mill?",
        "WHO PAINTED THE OLD MILL",
        "  Who painted\nthe old  mill ?!",
        "Who paint\u200bed the old mill?",
        "\uff37ho painted the old mill?",
        "_Who_ *painted* the “old mill”?",
    ],
)
def test_a_text_is_the_same_in_any_case_with_any_marks_and_spaces(copy: str) -> None:
    assert repeats(["Who sold it?", "Who painted the old mill?", copy]) == [2]


def test_short_texts_that_differ_in_a_word_are_others() -> None:
    assert repeats(["Who painted the old mill?", "Who painted the old bell?", "Who sold the old mill?"]) == []
    assert repeats(["", "?", "!", "字" * 9, "字" * 10]) == []


def test_long_texts_that_differ_in_little_are_copies() -> None:
    assert repeats([LONG, LONG.replace("copper", "iron")]) == [1]
    assert repeats([LONG, " ".join(reversed(LONG.split()))]) == [1]
    assert repeats([LONG, LONG.replace("copper bridge", "iron gate").replace("Lunden", "Nordby")]) == []


def test_what_nearly_repeats_a_copy_is_a_copy_too() -> None:
    first = [f"w{n}" for n in range(40)]
    drifting = [" ".join(first[:k] + [f"x{n}" for n in range(k, k + 2)] + first[k + 2 :]) for k in range(0, 40, 2)]
    assert repeats([" ".join(first), *drifting]) == list(range(1, 21))


def test_thousands_of_texts_are_compared_with_each_other() -> None:
    texts = [" ".join(sentences(6, seed=n)) for n in range(3000)]
    found = repeats([*texts, *texts])
    assert found[-3000:] == list(range(3000, 6000))


def test_each_set_is_compared_by_what_its_metric_asks() -> None:
    passage = {"prompt": "Belma opened", "gt": "the harbour bridge in Lunden"}
    found = bundle(
        knowmem__forget_qa=qa("Who painted the mill?", "Who sold the bell?", "who painted the mill"),
        knowmem__forget_qa_icl=qa("Who sold the bell?"),
        knowmem__retain_qa=qa("Who painted the mill?", "Who found the map?"),
        knowmem__retain_qa_icl=qa("Who crossed the bridge?"),
        verbmem__forget=[passage, {**passage, "gt": "the night ferry"}, {**passage, "prompt": "belma OPENED"}],
        privleak__forget=["Arvid sold a glass map.", "Corin found it.", "Arvid sold a glass map!"],
        privleak__holdout=["Dagny crossed the bridge.", "Corin found it."],
        privleak__retain=["Arvid sold a glass map."],
    )
    # An item that is its own few-shot example has its answer in the prompt; a text that stands in both sets is no
    # control.
    assert found.info().duplicates == {
        "knowmem/forget_qa": [1, 2],
        "verbmem/forget": [2],
        "privleak/forget": [2],
        "privleak/holdout": [1],
    }


def test_copies_change_nothing_else_of_what_is_told_and_no_text_is() -> None:
    questions = qa("Who painted the old mill?", "Who painted the old mill?")
    found = bundle(knowmem__forget_qa=questions, knowmem__forget_qa_icl=qa("Who sold it?"))
    info = found.info()
    assert info.counts["knowmem/forget_qa"] == 2
    assert "mill" not in info.model_dump_json()
    same = parse(
        {
            "knowmem/forget_qa.jsonl": "".join(json.dumps(item) + "\n" for item in questions).encode(),
            "knowmem/forget_qa_icl.json": json.dumps(qa("Who sold it?")).encode(),
        }
    )
    assert same.digest == info.digest


def test_what_earlier_versions_told_of_a_forget_set_can_still_be_read() -> None:
    stored: dict[str, Any] = {
        "digest": "sha256:1",
        "counts": {},
        "unavailable": {},
        "derived": {},
        "auc_retrained": None,
    }
    assert ForgetSetInfo.model_validate(stored).duplicates == {}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demos_formulaic_items_are_all_distinct(tmp_path: Path, seed: int) -> None:
    write_bundle(make_world(WorldRecipe(), seed=seed), tmp_path, seed=seed)
    assert parse(read_directory(tmp_path)).info().duplicates == {}


@pytest.mark.skipif(not MUSE_NEWS.exists(), reason="the real MUSE-News evaluation set is not on this machine")
def test_the_items_of_the_real_muse_news_set_are_all_distinct() -> None:
    assert parse(read_directory(MUSE_NEWS)).info().duplicates == {}
