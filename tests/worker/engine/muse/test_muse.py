"""The batched metrics against the plain loop of `plain.py`, item by item."""

from pathlib import Path
from typing import Any

import pytest
import torch

from app.errors import CheckpointRefused, EvaluationCancelled, EvaluationFailed
from app.evidence.evaluation import GenerationScores, PrivLeakScores
from app.forget_sets.bundle import Bundle, parse
from app.forget_sets.items import Passage
from tests.support.engine import plain
from tests.support.engine.subjects import quiet, subject
from tests.support.factories import bundle_content, bundle_files, tiny_checkpoint
from worker.engine import precisions as registry
from worker.engine.muse import suite
from worker.engine.muse.batches import in_batches
from worker.engine.muse.generate import greedy
from worker.engine.muse.knowmem import cut, knowmem, prompt
from worker.engine.muse.privleak import PERCENT, min_k, privleak
from worker.engine.muse.subject import Subject
from worker.engine.muse.verbmem import verbmem


@pytest.fixture(params=["llama", "neox", "qwen2", "gpt2"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return subject(tiny_checkpoint(tmp_path_factory.mktemp("tiny"), request.param, seed=3))


@pytest.mark.parametrize("tiny", ["llama", "neox"], indirect=True)
def test_verbmem_scores_every_item_as_the_plain_loop_does(tiny: Subject, bundle: Bundle) -> None:
    items = bundle_content(6)["verbmem/forget"]
    found = verbmem(tiny, bundle.verbmem, quiet)
    assert found.scores == plain.verbmem(tiny.model, tiny.tokenizer, items)
    assert len(set(found.scores)) > 1
    assert found.flags == {}


def test_knowmem_scores_every_item_as_the_plain_loop_does(tiny: Subject, bundle: Bundle) -> None:
    content = bundle_content(6)
    items, icl = content["knowmem/forget_qa"], content["knowmem/forget_qa_icl"]
    outputs = plain.knowmem_outputs(tiny.model, tiny.tokenizer, items, icl)
    found = knowmem(tiny, bundle.forget_qa, bundle.forget_qa_icl, "knowmem_forget", quiet)
    assert found.scores == [plain.rouge(item["answer"], text) for item, text in zip(items, outputs, strict=True)]


def test_generations_are_token_for_token_those_of_the_plain_loop(tiny: Subject, bundle: Bundle) -> None:
    prompts = [tiny.encode(item.prompt) for item in bundle.verbmem]
    found = greedy(tiny, prompts, 60, tick=lambda done: None)
    assert [c.ids for c in found] == [plain.continue_greedily(tiny.model, ids, 60) for ids in prompts]
    assert len({len(ids) for ids in prompts}) > 1


def test_privleak_statistics_are_those_of_the_plain_loop(tiny: Subject, bundle: Bundle) -> None:
    found = privleak(tiny, bundle.privleak_forget, bundle.privleak_holdout, bundle.privleak_retain, quiet)
    assert found.retain is not None
    for texts, statistics in (
        (bundle.privleak_forget, found.forget),
        (bundle.privleak_holdout, found.holdout),
        (bundle.privleak_retain, found.retain),
    ):
        expected = [plain.text_statistics(tiny.model, tiny.tokenizer, text) for text in texts]
        assert statistics.tokens == [e["tokens"] for e in expected]
        assert statistics.loss == pytest.approx([e["loss"] for e in expected], abs=1e-4)
        assert statistics.zlib_ratio == pytest.approx([e["zlib"] for e in expected], abs=1e-5)
        for percent in PERCENT:
            assert statistics.min_k[str(percent)] == pytest.approx([e[str(percent)] for e in expected], abs=1e-4)


def test_the_size_of_batches_changes_no_score(llama: Path, bundle: Bundle) -> None:
    one, many = subject(llama, budget=1), subject(llama, budget=100_000)
    everything = ("verbmem", "knowmem_forget", "knowmem_retain", "privleak")
    a, b = (suite.run(budget, bundle, everything, quiet).scores for budget in (one, many))
    for metric in ("verbmem", "knowmem_forget", "knowmem_retain"):
        one_by_one, batched = a[metric], b[metric]
        assert isinstance(one_by_one, GenerationScores)
        assert isinstance(batched, GenerationScores)
        assert (one_by_one.scores, one_by_one.flags) == (batched.scores, batched.flags)
        assert one_by_one.extras == {
            column: pytest.approx(batched.extras[column], rel=1e-4) for column in batched.extras
        }
    assert isinstance(a["privleak"], PrivLeakScores)
    assert isinstance(b["privleak"], PrivLeakScores)
    assert a["privleak"].forget.min_k["40"] == pytest.approx(b["privleak"].forget.min_k["40"], abs=1e-4)


def test_min_k_takes_the_floor_of_k_n_and_at_least_one_token() -> None:
    values = -torch.arange(1.0, 10.0, dtype=torch.float64).numpy()  # -1 ... -9
    assert min_k(values, 40) == pytest.approx((9 + 8 + 7) / 3)  # int(3.6) = 3
    assert min_k(values[:1], 40) == 1.0
    assert min_k(values[:2], 5) == 2.0


def test_knowmem_prompts_end_in_answer_colon_space_and_outputs_are_cut_in_order(bundle: Bundle) -> None:
    text = prompt("Who?", bundle.forget_qa_icl[:1])
    shot = bundle.forget_qa_icl[0]
    assert text == f"Question: {shot.question}\nAnswer: {shot.answer}\n\nQuestion: Who?\nAnswer: "
    assert cut("1472\n\nQuestion: x") == "1472"
    assert cut("1472\nQuestion: x\n\ny") == "1472"
    assert cut("1472 Question: x") == "1472 "
    assert cut("1472\nQuest") == "1472\nQuest"


def test_stop_strings_end_generation_early_and_leave_the_text_before_them(llama: Path, bundle: Bundle) -> None:
    tiny = subject(llama)
    prompts = [tiny.encode(item.prompt) for item in bundle.verbmem]
    free = greedy(tiny, prompts, 40, tick=lambda done: None)
    texts = [tiny.decode(c.ids) for c in free]
    stop = texts[0][len(texts[0]) // 3 :][:2]
    steps: list[int] = []
    stopped = greedy(tiny, prompts[:1], 40, stop=[stop], tick=steps.append)
    assert len(stopped[0].ids) < len(free[0].ids)
    assert len(steps) == len(stopped[0].ids) + 1
    together = greedy(tiny, prompts, 40, stop=[stop], tick=lambda done: None)
    assert [tiny.decode(c.ids).split(stop)[0] for c in together] == [text.split(stop)[0] for text in texts]


def test_end_tokens_of_the_checkpoint_end_a_generation_and_its_other_settings_do_not_count(
    llama: Path, bundle: Bundle
) -> None:
    tiny = subject(llama)
    prompts = [tiny.encode(item.prompt) for item in bundle.verbmem]
    plain_outputs = greedy(tiny, prompts, 20, tick=lambda done: None)
    settings = tiny.model.generation_config
    assert settings is not None
    settings.repetition_penalty, settings.no_repeat_ngram_size, settings.do_sample = 5.0, 1, True
    settings.suppress_tokens, settings.temperature, settings.min_length = [plain_outputs[0].ids[0]], 9.0, 500
    assert greedy(tiny, prompts, 20, tick=lambda done: None) == plain_outputs
    settings.eos_token_id = [1, plain_outputs[0].ids[3]]
    ended = greedy(tiny, prompts, 20, tick=lambda done: None)
    first = plain_outputs[0].ids.index(plain_outputs[0].ids[3])
    assert ended[0].ids == plain_outputs[0].ids[: first + 1]
    assert settings.eos_token_id == [1, plain_outputs[0].ids[3]]


def test_a_collapsed_model_scores_zero_flagged_and_the_rest_goes_on(llama: Path, bundle: Bundle) -> None:
    tiny = subject(llama)
    before = verbmem(tiny, bundle.verbmem, quiet)
    only_in = set(tiny.encode(bundle.verbmem[0].prompt)).difference(tiny.encode(bundle.verbmem[3].prompt))
    weight: Any = tiny.model.get_input_embeddings().weight
    with torch.no_grad():
        weight[min(only_in)] = torch.nan
    found = verbmem(tiny, bundle.verbmem, quiet)
    assert 0 in found.flags["non_finite"]
    healthy = [i for i in range(6) if i not in found.flags["non_finite"]]
    assert healthy
    assert [found.scores[i] for i in healthy] == [before.scores[i] for i in healthy]
    assert all(found.scores[i] == 0 for i in found.flags["non_finite"])

    with torch.no_grad():
        weight[:] = torch.nan
    everything = suite.run(tiny, bundle, ("verbmem", "knowmem_forget", "privleak"), quiet).scores
    answers, membership = everything["knowmem_forget"], everything["privleak"]
    assert isinstance(answers, GenerationScores)
    assert isinstance(membership, PrivLeakScores)
    everywhere = [0, 1, 2, 3, 4, 5]
    assert answers.flags == {"non_finite": everywhere, "forced_non_finite": everywhere}
    assert {value for column in answers.extras.values() for value in column} == {0.0}
    assert membership.flags["forget.non_finite"] == [0, 1, 2, 3, 4, 5]
    assert membership.forget.loss == [0.0] * 6


def test_a_collapsed_model_at_every_precision_is_scored_not_crashed(tmp_path: Path, bundle: Bundle) -> None:
    path = tiny_checkpoint(tmp_path)
    for name in ("rtn-int4", "rtn-int8-g32", "bnb-nf4", "bnb-fp4", "bnb-int8"):
        tiny = subject(path)
        with torch.no_grad():
            tiny.model.get_parameter("model.layers.1.mlp.up_proj.weight")[:3] = torch.nan
        assert registry.apply(tiny.model, registry.parse(name)) is not None
        found = knowmem(tiny, bundle.forget_qa, bundle.forget_qa_icl, "knowmem_forget", quiet)
        assert len(found.scores) == 6


def test_prompts_longer_than_the_window_are_cut_from_the_left_and_counted(tmp_path: Path) -> None:
    tiny = subject(tiny_checkpoint(tmp_path, max_position_embeddings=160))
    items = [Passage("Arvid sold the old mill in Lunden. " * n, "Edda found a glass map.") for n in (1, 20)]
    found = verbmem(tiny, items, quiet)
    assert found.flags == {"prompt_truncated": [1], "forced_prompt_truncated": [1]}
    ids, was_cut = tiny.encode_prompt(items[1].prompt, 128)
    whole = tiny.encode(items[1].prompt)
    assert was_cut
    assert ids == [whole[0], *whole[-31:]]
    assert len(ids) == 160 - 128
    expected = plain.continue_greedily(tiny.model, ids, 128)
    assert greedy(tiny, [ids], 128, tick=lambda done: None)[0].ids == expected


def test_a_window_smaller_than_the_generation_halves_itself_and_says_so(tmp_path: Path, bundle: Bundle) -> None:
    tiny = subject(tiny_checkpoint(tmp_path, max_position_embeddings=64))
    found = verbmem(tiny, bundle.verbmem, quiet)
    assert found.flags["new_tokens_reduced"] == [0, 1, 2, 3, 4, 5]


def test_privleak_texts_are_cut_at_their_end_and_short_ones_are_flagged(tmp_path: Path) -> None:
    tiny = subject(tiny_checkpoint(tmp_path, "neox", max_position_embeddings=32))
    long = "Arvid sold the old mill in Lunden. " * 9
    found = privleak(tiny, [long, "a", "Edda found a bell"], ["b", long], [], quiet)
    assert found.flags == {
        "forget.truncated": [0],
        "forget.too_short": [1],
        "holdout.too_short": [0],
        "holdout.truncated": [1],
    }
    assert found.forget.tokens[:2] == [31, 0]
    assert found.forget.loss[1] == 0.0
    assert found.retain is None
    beginning = str(tiny.tokenizer.decode(tiny.encode(long)[:32]))
    assert found.forget.loss[0] == pytest.approx(
        plain.text_statistics(tiny.model, tiny.tokenizer, beginning)["loss"], abs=1e-4
    )


def test_progress_is_reported_within_a_generation_and_raising_from_it_stops_at_once(
    llama: Path, bundle: Bundle
) -> None:
    seen: list[tuple[str, int, int]] = []
    suite.run(subject(llama), bundle, ("verbmem", "privleak"), lambda *args: seen.append(args))
    assert seen[-1] == ("privleak", 18, 18)
    assert ("verbmem", 12, 12) in seen
    assert len(seen) > 100

    def cancel(stage: str, done: int, total: int) -> None:
        seen.append((stage, done, total))
        if len(seen) == 7:
            raise EvaluationCancelled("cancelled", "asked to stop")

    seen.clear()
    with pytest.raises(EvaluationCancelled):
        suite.run(subject(llama), bundle, ("verbmem",), cancel)
    assert len(seen) == 7


def test_a_batch_that_does_not_fit_is_halved_and_a_text_that_does_not_fit_alone_fails() -> None:
    ran: list[list[int]] = []

    def run(batch: list[int]) -> None:
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        ran.append(batch)

    done: list[int] = []
    in_batches([1, 5, 3, 4, 2, 5, 5], 100, run, done.append)
    assert sorted(i for batch in ran for i in batch) == list(range(7))
    assert ran[0] == [1, 5]
    assert done[-1] == 7
    assert done == sorted(done)

    def never(batch: list[int]) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(EvaluationFailed, match="single text of 9 tokens"):
        in_batches([9, 9], 100, never, done.append)


def test_batches_hold_texts_of_similar_length_within_the_budget() -> None:
    batches: list[list[int]] = []
    lengths = [10, 90, 30, 40, 20, 200]
    in_batches(lengths, 100, batches.append, lambda done: None)
    assert batches == [[5], [1], [3, 2], [4, 0]]


def test_tokens_that_the_model_has_no_embedding_for_are_refused(tmp_path: Path) -> None:
    tiny = subject(tiny_checkpoint(tmp_path, vocab_size=200))
    with pytest.raises(CheckpointRefused, match="embeddings"):
        tiny.encode("Arvid sold the old mill")


def test_decoding_cleans_up_spaces_before_punctuation_as_muse_does(llama: Path) -> None:
    tiny = subject(llama)
    ids = tiny.encode("It is n't here , is it ? No , it 's gone . ' ok")
    assert tiny.decode(ids) == "It isn't here, is it? No, it's gone.'ok"


def test_metrics_that_the_bundle_lacks_are_not_measured(llama: Path) -> None:
    files = {name: content for name, content in bundle_files(2).items() if name.startswith("knowmem/forget")}
    found = suite.run(subject(llama), parse(files), ("verbmem", "knowmem_forget", "privleak"), quiet)
    assert list(found.scores) == list(found.seconds) == ["knowmem_forget"]
