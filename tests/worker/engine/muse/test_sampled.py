"""VerbMem sampled: what is drawn, and what it depends on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.forget_sets.bundle import Bundle, parse
from app.forget_sets.items import Passage
from tests.support.engine.bigram import bigram, following
from tests.support.engine.subjects import quiet, subject
from tests.support.factories import VOCAB, bundle_files
from tests.support.judgement.evaluations import scores_of
from worker.engine.evaluate import evaluate
from worker.engine.muse.generate import greedy, sampled
from worker.engine.muse.rouge import rouge_l
from worker.engine.muse.sampled import SAMPLES, TEMPERATURE, draws, verbmem_sampled
from worker.engine.muse.verbmem import truth


def unheard(done: int) -> None:
    """A progress callback that does nothing."""


def test_neither_the_size_of_batches_nor_the_order_of_items_changes_what_is_drawn(llama: Path, bundle: Bundle) -> None:
    one = verbmem_sampled(subject(llama, budget=1), bundle.verbmem, 0, quiet)
    assert verbmem_sampled(subject(llama, budget=100_000), bundle.verbmem, 0, quiet) == one
    backwards = verbmem_sampled(subject(llama), bundle.verbmem[::-1], 0, quiet)
    assert (backwards.scores[::-1], backwards.extras["best_of_k"][::-1]) == (one.scores, one.extras["best_of_k"])
    alone = verbmem_sampled(subject(llama), bundle.verbmem[3:4], 0, quiet)
    assert alone.scores == one.scores[3:4]
    assert verbmem_sampled(subject(llama), bundle.verbmem, 1, quiet).scores != one.scores


def test_the_mean_and_the_best_of_the_samples_are_scored_as_verbmem_is(llama: Path, bundle: Bundle) -> None:
    tiny = subject(llama)
    found = verbmem_sampled(tiny, bundle.verbmem, 0, quiet)
    for at, item in enumerate(bundle.verbmem):
        ids = tiny.encode(item.prompt)
        each = sampled(
            tiny, [ids] * SAMPLES, [draws(0, item.prompt, k, 128) for k in range(SAMPLES)], TEMPERATURE, tick=unheard
        )
        assert len({tuple(sample.ids) for sample in each}) == SAMPLES
        scores = [rouge_l(truth(tiny, item), tiny.decode(sample.ids)) for sample in each]
        assert found.scores[at] == pytest.approx(sum(scores) / SAMPLES)
        assert found.extras["best_of_k"][at] == max(scores)
    assert found.flags == {}


def test_tokens_come_as_often_as_the_model_says_at_the_temperature() -> None:
    table = torch.zeros(VOCAB, VOCAB)
    table[:, 5], table[:, 9], table[:, 7] = 6.0, 5.0, -1e4
    tiny = bigram(table)
    count = 2000
    evenly = (np.arange(count) + 0.5) / count
    found = [one.ids[0] for one in sampled(tiny, [[3]] * count, [np.array([u]) for u in evenly], 0.9, tick=unheard)]
    expected = torch.softmax(table[3].double() / 0.9, -1)
    for token in (5, 9, 100):
        assert abs(found.count(token) - count * float(expected[token])) <= 1
    assert 7 not in found


def test_what_the_model_is_sure_of_is_drawn_every_time_and_what_it_never_says_never() -> None:
    item = Passage("Arvid sold", "the copper bell")
    empty = bigram(torch.zeros(VOCAB, VOCAB))
    ids = [*empty.encode("Arvid sold the copper bell"), 1]
    assert len(set(ids)) == len(ids), "a token that comes twice cannot have two successors"
    sure = verbmem_sampled(bigram(100 * following(ids)), [item], 0, quiet)
    assert (sure.scores, sure.extras) == ([1.0], {"best_of_k": [1.0]})
    never = verbmem_sampled(bigram(100 * following([*ids[:-4], 1])), [item], 0, quiet)
    assert (never.scores, never.extras) == ([0.0], {"best_of_k": [0.0]})


def test_the_checkpoints_generation_settings_do_not_count_but_its_end_tokens(llama: Path, bundle: Bundle) -> None:
    tiny = subject(llama)
    before = verbmem_sampled(tiny, bundle.verbmem, 0, quiet)
    settings = tiny.model.generation_config
    assert settings is not None
    settings.repetition_penalty, settings.do_sample, settings.top_k, settings.temperature = 5.0, True, 1, 9.0
    assert verbmem_sampled(tiny, bundle.verbmem, 0, quiet) == before
    rows = [draws(0, "a", k, 20) for k in range(6)]
    prompts = [tiny.encode(item.prompt) for item in bundle.verbmem]
    whole = sampled(tiny, prompts, rows, 0.9, tick=unheard)
    settings.eos_token_id = [1, whole[0].ids[3]]
    ended = sampled(tiny, prompts, rows, 0.9, tick=unheard)
    assert ended[0].ids == whole[0].ids[: whole[0].ids.index(whole[0].ids[3]) + 1]


def test_samples_without_numbers_score_zero_and_their_items_are_flagged(llama: Path, bundle: Bundle) -> None:
    tiny = subject(llama)
    weight: Any = tiny.model.get_input_embeddings().weight
    only_in = set(tiny.encode(bundle.verbmem[0].prompt)).difference(tiny.encode(bundle.verbmem[3].prompt))
    with torch.no_grad():
        weight[min(only_in)] = torch.nan
    found = verbmem_sampled(tiny, bundle.verbmem, 0, quiet)
    assert 0 in found.flags["non_finite"]
    assert (found.scores[0], found.extras["best_of_k"][0]) == (0.0, 0.0)
    with torch.no_grad():
        weight[:] = torch.nan
    assert verbmem_sampled(tiny, bundle.verbmem, 0, quiet).flags == {"non_finite": [0, 1, 2, 3, 4, 5]}


def test_progress_counts_samples_and_greedy_decoding_is_untouched(llama: Path, bundle: Bundle) -> None:
    tiny = subject(llama, budget=2000)
    prompts = [tiny.encode(item.prompt) for item in bundle.verbmem]
    before = greedy(tiny, prompts, 20, tick=unheard)
    seen: list[tuple[str, int, int]] = []
    verbmem_sampled(tiny, bundle.verbmem, 0, lambda *step: seen.append(step))
    assert seen[-1] == ("verbmem_sampled", 6 * SAMPLES, 6 * SAMPLES)
    assert [step[1] for step in seen] == sorted(step[1] for step in seen)
    assert greedy(tiny, prompts, 20, tick=unheard) == before


def test_an_evaluation_runs_it_only_when_asked_and_records_how(llama: Path, bundle: Bundle) -> None:
    found = evaluate(llama, "rtn-int4", bundle, metrics=("verbmem-sampled", "verbmem"), seed=3)
    again = evaluate(llama, "rtn-int4", bundle, metrics=("verbmem_sampled",), seed=3)
    assert found.scores("verbmem") is not None
    assert scores_of(found, "verbmem_sampled") == scores_of(again, "verbmem_sampled")
    assert found.engine.settings["verbmem_samples"] == 8
    assert found.engine.settings["verbmem_temperature"] == 0.9
    default = evaluate(llama, "full", bundle)
    assert default.scores("verbmem_sampled") is None
    assert "verbmem_samples" not in default.engine.settings
    without = parse({name: content for name, content in bundle_files(2).items() if name.startswith("knowmem/")})
    lacking = evaluate(llama, "full", without, metrics=("knowmem_forget", "verbmem_sampled"))
    assert lacking.scores("verbmem_sampled") is None
    assert "verbmem/forget.json" in lacking.forget_set.unavailable["verbmem_sampled"]
