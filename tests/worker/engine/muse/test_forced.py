"""Teacher-forced columns: against the plain loop, and against values computed by hand."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.forget_sets.bundle import Bundle
from app.forget_sets.items import QA, Passage
from tests.support.engine import plain
from tests.support.engine.bigram import bigram, following
from tests.support.engine.subjects import quiet, subject
from tests.support.factories import bundle_content, tiny_checkpoint
from worker.engine.muse.knowmem import knowmem, prompt
from worker.engine.muse.subject import Subject
from worker.engine.muse.verbmem import verbmem

CLOSE = 256 * torch.finfo(torch.float32).eps
"""How far apart the logarithms of two probabilities may be that were added up in another order."""
BASE = ("exact_memorization", "extraction_strength", "probability")


def close(values: list[float]) -> Any:
    return pytest.approx(values, rel=CLOSE)


def joined(tiny: Subject, prompt_text: str, answer: str) -> tuple[list[int], int]:
    """(all ids, where the answer's begin)"""
    start, whole = tiny.encode(prompt_text), tiny.encode(prompt_text + answer)
    return whole, next((i for i, (a, b) in enumerate(zip(start, whole, strict=False)) if a != b), len(start))


@pytest.fixture(params=["llama", "neox", "qwen2", "gpt2"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return subject(tiny_checkpoint(tmp_path_factory.mktemp("tiny"), request.param, seed=3))


def test_verbmems_columns_are_those_of_the_plain_loop(tiny: Subject, bundle: Bundle) -> None:
    items = bundle_content(6)["verbmem/forget"]
    found = verbmem(tiny, bundle.verbmem, quiet).extras
    expected = [plain.memorization(tiny.model, tiny.tokenizer, item["prompt"], " " + item["gt"], 128) for item in items]
    for column, values in zip(BASE, zip(*expected, strict=True), strict=True):
        assert found[column] == close(list(values))
    assert set(found) == set(BASE)


def test_knowmems_columns_are_those_of_the_plain_loop(tiny: Subject, bundle: Bundle) -> None:
    wrong = [item.answer for item in bundle.forget_qa]
    # One item without perturbed answers stands between others.
    items = [
        item if at == 2 else replace(item, perturbed=(*wrong[:at], *wrong[at + 1 :])[: 1 + at % 3])
        for at, item in enumerate(bundle.forget_qa)
    ]
    found = knowmem(tiny, items, bundle.forget_qa_icl, "knowmem_forget", quiet).extras
    asked = [prompt(item.question, bundle.forget_qa_icl) for item in items]

    def expected(at: int, answer: str) -> tuple[float, float, float]:
        return plain.memorization(tiny.model, tiny.tokenizer, asked[at], answer)

    right = [expected(at, item.answer) for at, item in enumerate(items)]
    for column, values in zip(BASE, zip(*right, strict=True), strict=True):
        assert found[column] == close(list(values))
    for at, item in enumerate(items):
        others = [expected(at, answer)[2] for answer in item.perturbed]
        ratio = right[at][2] / (right[at][2] + sum(others) / len(others)) if others else None
        assert found["truth_ratio"][at] == (None if ratio is None else pytest.approx(ratio, rel=2 * CLOSE))


def test_retain_questions_are_scored_alike_and_without_perturbed_answers_there_is_no_truth_ratio(
    llama: Path, bundle: Bundle
) -> None:
    tiny = subject(llama)
    found = knowmem(tiny, bundle.retain_qa, bundle.retain_qa_icl, "knowmem_retain", quiet)
    assert set(found.extras) == set(BASE)
    first = bundle.retain_qa[0]
    expected = plain.memorization(
        tiny.model, tiny.tokenizer, prompt(first.question, bundle.retain_qa_icl), first.answer
    )
    assert [found.extras[column][0] for column in BASE] == close(list(expected))


PASSAGE = Passage("Arvid sold", "the copper bell")
KNOWS_NOTHING = 1 / 766


def table_for(known: list[bool]) -> tuple[torch.Tensor, int]:
    """A table that knows those tokens of `PASSAGE`'s continuation, and how many there are."""
    ids, start = joined(bigram(torch.zeros(384, 384)), PASSAGE.prompt, " " + PASSAGE.continuation)
    assert len(set(ids)) == len(ids), "a token that comes twice cannot have two successors"
    n = len(ids) - start
    table = torch.zeros(384, 384)
    for at, knows in zip(range(start, len(ids)), known, strict=False):
        table += following([ids[at - 1], ids[at] if knows else 1])
    return table, n


@pytest.mark.parametrize("case", ["all", "nothing", "last only", "all but the last", "all but the first"])
def test_columns_are_those_computed_by_hand(case: str) -> None:
    n = table_for([])[1]
    known = {
        "all": [True] * n,
        "nothing": [False] * n,
        "last only": [False] * (n - 1) + [True],
        "all but the last": [True] * (n - 1) + [False],
        "all but the first": [False] + [True] * (n - 1),
    }[case]
    strength = {"all": 1, "nothing": 0, "last only": 1 / n, "all but the last": 0, "all but the first": 1 - 1 / n}[case]
    assert n > 2
    found = verbmem(bigram(table_for(known)[0]), [PASSAGE], quiet)
    share = sum(known) / n
    assert found.extras == {
        "exact_memorization": [pytest.approx(share)],
        "extraction_strength": [pytest.approx(strength)],
        "probability": close([0.5**share * KNOWS_NOTHING ** (1 - share)]),
    }
    assert found.flags == {}


def test_the_truth_ratio_compares_means_over_tokens_and_no_item_takes_anothers_place() -> None:
    empty = bigram(torch.zeros(384, 384))
    known, start = joined(empty, prompt("Who?", []), "Edda")
    tiny = bigram(following(known[start - 1 :]))
    items = [
        QA("Who?", "Edda", ("Arvid of Lunden", "1920")),
        QA("Who?", "Edda"),
        QA("Who?", "Arvid of Lunden", ("Edda",)),
        QA("Who?", "Edda", ("Edda", "1920")),
    ]

    def p(answer: str) -> float:
        ids, at = joined(tiny, prompt("Who?", []), answer)
        pairs = set(pairwise(known[start - 1 :]))
        each = [0.5 if pair in pairs else KNOWS_NOTHING for pair in pairwise(ids[at - 1 :])]
        # After a token whose successor is not known, all are alike.
        heads = {pair[0] for pair in pairs}
        each = [q if pair[0] in heads else 1 / 384 for q, pair in zip(each, pairwise(ids[at - 1 :]), strict=True)]
        return float(np.exp(np.mean(np.log(each))))

    edda, arvid, year = p("Edda"), p("Arvid of Lunden"), p("1920")
    assert edda == pytest.approx(0.5)
    found = knowmem(tiny, items, [], "knowmem_forget", quiet).extras
    assert found["truth_ratio"] == [
        pytest.approx(edda / (edda + (arvid + year) / 2), rel=CLOSE),
        None,
        pytest.approx(arvid / (arvid + edda), rel=CLOSE),
        pytest.approx(edda / (edda + (edda + year) / 2), rel=CLOSE),
    ]
    assert found["probability"] == close([edda, edda, arvid, edda])


def test_probabilities_too_small_for_a_float_still_have_a_ratio() -> None:
    empty = bigram(torch.zeros(384, 384))
    ids, start = joined(empty, prompt("Who?", []), "Edda")
    table = 3000 * following([*ids[start - 1 : start], 5])
    found = knowmem(bigram(table), [QA("Who?", "Edda", ("Edda",))], [], "knowmem_forget", quiet).extras
    assert found["probability"] == [0.0]
    assert found["truth_ratio"] == [0.5]


def test_an_item_whose_logits_are_no_numbers_scores_zero_flagged_and_the_rest_goes_on(tmp_path: Path) -> None:
    tiny = subject(tiny_checkpoint(tmp_path))
    items = [
        QA("Who?", "Edda", ("1920",)),
        QA("Who?", "Zoe", ("Edda",)),
        QA("Who?", "Edda", ("Zoe", "1920")),
        QA("Who?", "1"),
    ]
    before = knowmem(tiny, items, [], "knowmem_forget", quiet)
    broken = set(tiny.encode(prompt("Who?", []) + "Zoe")) - {
        token for text in ("Edda", "1920", "1") for token in tiny.encode(prompt("Who?", []) + text)
    }
    weight: Any = tiny.model.get_input_embeddings().weight
    with torch.no_grad():
        weight[list(broken)] = torch.nan
    found = knowmem(tiny, items, [], "knowmem_forget", quiet)
    assert found.flags["forced_non_finite"] == [1, 2]
    for column in BASE:
        expected = [0.0 if at == 1 else value for at, value in enumerate(before.extras[column])]
        assert found.extras[column] == pytest.approx(expected, rel=CLOSE)
    ratios = before.extras["truth_ratio"]
    assert found.extras["truth_ratio"] == [pytest.approx(ratios[0], rel=CLOSE), 0.0, 0.0, None]


def test_what_does_not_fit_into_the_window_is_cut_and_flagged(tmp_path: Path) -> None:
    tiny = subject(tiny_checkpoint(tmp_path, max_position_embeddings=64))
    long = "Arvid sold the old mill in Lunden. " * 9
    items = [QA("Who?", "Edda"), QA(long, "Edda"), QA("Who?", long.strip()), QA("Who?", "Edda", (long.strip(),))]
    found = knowmem(tiny, items, [], "knowmem_forget", quiet)
    assert found.flags["forced_prompt_truncated"] == [1, 2, 3]
    assert found.flags["forced_answer_truncated"] == [2, 3]
    # The prompt's end is kept, after its BOS where there is room for both; of an answer the beginning.
    whole, start = joined(tiny, prompt(long, []), "Edda")
    n = len(whole) - start
    kept = [whole[0], *whole[-63:]]
    with torch.no_grad():
        logits: Any = tiny.model(torch.tensor([kept]), use_cache=False).logits[0].double()
    log_probs = torch.log_softmax(logits, -1)[range(63 - n, 63), kept[-n:]]
    assert found.extras["probability"][1] == pytest.approx(float(log_probs.mean().exp()), rel=CLOSE)
    whole, start = joined(tiny, prompt("Who?", []), items[2].answer)
    kept = whole[start - 1 : start + 63]
    with torch.no_grad():
        logits = tiny.model(torch.tensor([kept]), use_cache=False).logits[0].double()
    log_probs = torch.log_softmax(logits, -1)[range(63), kept[1:]]
    assert found.extras["probability"][2] == pytest.approx(float(log_probs.mean().exp()), rel=CLOSE)


def test_progress_only_grows_and_ends_at_its_total(llama: Path, bundle: Bundle) -> None:
    items = [replace(item, perturbed=("Edda", "Arvid")[: at % 3]) for at, item in enumerate(bundle.forget_qa)]
    seen: list[tuple[str, int, int]] = []
    knowmem(subject(llama, budget=300), items, bundle.forget_qa_icl, "knowmem_forget", lambda *step: seen.append(step))
    total = 2 * len(items) + sum(len(item.perturbed) for item in items)
    assert seen[-1] == ("knowmem_forget", total, total)
    assert {step[2] for step in seen} == {total}
    assert [step[1] for step in seen] == sorted(step[1] for step in seen)
