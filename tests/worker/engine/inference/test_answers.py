"""What a model says and what it makes of given answers is what it says and makes of them one by one, whatever it is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as t

from tests.support.engine import plain
from tests.support.factories import tiny_tokenizer
from worker.engine.inference import prompts as reading
from worker.engine.inference.answers import Joined, answers
from worker.engine.inference.generate import greedy
from worker.engine.inference.likelihood import score_tokens
from worker.engine.inference.subject import Subject

SHAPE: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 384}
USUAL: dict[str, Any] = {**SHAPE, "intermediate_size": 96, "num_key_value_heads": 2, "max_position_embeddings": 256}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: t.LlamaConfig(**USUAL),
    "neox": lambda: t.GPTNeoXConfig(**SHAPE, intermediate_size=96, max_position_embeddings=256),
    "gpt2": lambda: t.GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=384, n_positions=256),
    "opt": lambda: t.OPTConfig(**SHAPE, ffn_dim=96, word_embed_proj_dim=64, max_position_embeddings=256),
    "qwen2": lambda: t.Qwen2Config(**USUAL),
    "a sliding window": lambda: t.MistralConfig(**USUAL, sliding_window=12),
    "sliding and full layers": lambda: t.Gemma2Config(**USUAL, head_dim=16, sliding_window=12),
    "relative positions": lambda: t.BloomConfig(hidden_size=64, n_layer=3, n_head=4, vocab_size=384),
    "experts": lambda: t.MixtralConfig(**USUAL, num_local_experts=4, sliding_window=None),
    "a state": lambda: t.MambaConfig(hidden_size=64, num_hidden_layers=3, vocab_size=384, state_size=8),
}
SHARES = {"llama", "neox", "gpt2", "opt", "qwen2", "experts"}
NEW = 24
SHOTS = [5 + i % 300 for i in range(40)]


@pytest.fixture(scope="module", params=MODELS)
def subject(request: pytest.FixtureRequest) -> Subject:
    """A random model with large weights: its choices differ from prompt to prompt."""
    torch.manual_seed(0)
    auto: Any = t.AutoModelForCausalLM
    model = auto.from_config(MODELS[request.param]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.generation_config.eos_token_id = 1
    found = Subject(model, tiny_tokenizer(), 2000)
    assert reading.can_share(found) is (request.param in SHARES)
    return found


def ignore(done: int) -> None:
    """A callback that does nothing."""


def prompts(shared: bool) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = (3, 17, 30, 30, 9)
    own = [torch.randint(2, 384, (length,), generator=generator).tolist() for length in lengths]
    return [[*SHOTS, *ids] if shared else ids for ids in own]


def expected(subject: Subject, prompt: list[int], answer: list[int]) -> list[float]:
    """The answer's log-probabilities, by one pass without a cache."""
    with torch.no_grad():
        logits = subject.model(torch.tensor([prompt + answer]), use_cache=False).logits[0].double()
    return torch.log_softmax(logits, -1)[range(len(prompt) - 1, len(prompt) + len(answer) - 1), answer].tolist()


@pytest.mark.parametrize("budget", [2000, 200])
@pytest.mark.parametrize("shared", [False, True])
def test_it_says_what_the_plain_loop_says(subject: Subject, shared: bool, budget: int) -> None:
    asked = prompts(shared)
    few = Subject(subject.model, subject.tokenizer, budget)
    found = greedy(few, [*asked, asked[1]], NEW, tick=ignore)
    said = [plain.continue_greedily(subject.model, prompt, NEW) for prompt in asked]
    assert [one.ids for one in found] == [*said, said[1]]
    assert len({tuple(ids) for ids in said}) > 1


@pytest.mark.parametrize("shared", [False, True])
def test_given_answers_have_the_scores_of_a_pass_of_their_own(subject: Subject, shared: bool) -> None:
    asked = prompts(shared)
    given = [
        [Joined([*prompt, *range(50, 50 + n)], n, False, False) for n in (4, 9 + i)][: 1 + i % 2]
        for i, prompt in enumerate(asked)
    ]
    # A tokenizer may take the prompt's last token into the answer, and a window may cut a prompt otherwise.
    given[1][0] = Joined([*asked[1][:-1], 77, 78], 2, False, False)
    given[2].append(Joined([*asked[2][9:], 60, 61, 62], 3, True, False))
    ticks: list[int] = []
    found = answers(subject, asked, given, NEW, tick=ticks.append)
    assert [one.ids for one in found.said] == [one.ids for one in greedy(subject, asked, NEW, tick=ignore)]
    for item, scores in zip(given, found.given, strict=True):
        for joined, own in zip(item, scores, strict=True):
            start = len(joined.ids) - joined.answer
            right = expected(subject, joined.ids[:start], joined.ids[start:])
            assert own.log_probs[-joined.answer :].tolist() == pytest.approx(right, abs=2e-4)
    assert ticks == sorted(ticks)
    assert ticks[-1] == len(asked) + sum(map(len, given))


def test_rows_end_one_after_the_other_and_the_others_go_on(subject: Subject) -> None:
    asked = prompts(shared=False)
    said = [plain.continue_greedily(subject.model, prompt, NEW) for prompt in asked]
    settings: Any = subject.model.generation_config
    before, settings.eos_token_id = settings.eos_token_id, sorted({1, *(ids[3 * i] for i, ids in enumerate(said))})
    try:
        found = greedy(subject, asked, NEW, tick=ignore)
    finally:
        ends, settings.eos_token_id = settings.eos_token_id, before
    cut = [next((i for i, token in enumerate(ids) if token in ends), NEW) + 1 for ids in said]
    assert [one.ids for one in found] == [ids[:length] for ids, length in zip(said, cut, strict=True)]


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_where_frequencies_follow_the_longest_text_each_is_read_alone(kind: str) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8} if kind == "longrope" else {}
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **factors}
    changes = {"rope_parameters": rope | {"original_max_position_embeddings": 32}, "max_position_embeddings": 32}
    torch.manual_seed(0)
    auto: Any = t.AutoModelForCausalLM
    tiny = Subject(auto.from_config(t.LlamaConfig(**{**USUAL, **changes})).eval(), tiny_tokenizer(), 2000)
    assert (tiny.reads_alone, reading.can_share(tiny)) == (True, False)
    short, long = prompts(shared=False)[1], [*SHOTS, *prompts(shared=False)[2]]
    alone = score_tokens(tiny, [short], tick=ignore)[0].log_probs
    assert score_tokens(tiny, [long, short], tick=ignore)[1].log_probs.tolist() == alone.tolist()
    said = greedy(tiny, [short], 8, tick=ignore)[0].ids
    assert greedy(tiny, [long, short], 8, tick=ignore)[1].ids == said
