"""The tiny world: its texts, its grid, its bundle, its stop rule and its cache, without the full build."""

from __future__ import annotations

import itertools
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from app.catalog.recipes import recipe
from app.forget_sets import bundle as muse_bundle
from worker.engine.demo import DemoWorld, TrainRecipe, WorldRecipe, build
from worker.engine.demo.build import cache_key
from worker.engine.demo.bundle import World, make_world, write_bundle
from worker.engine.demo.children import StageFailed, run_stages
from worker.engine.demo.corpus import Article, question_page, write_articles
from worker.engine.demo.grid import decoder_linears, project, project_model
from worker.engine.demo.tokenizer import train_tokenizer
from worker.engine.demo.train import encode
from worker.engine.unlearning.losses import IGNORED

SMALL = WorldRecipe(
    forget=4,
    retain=4,
    utility=4,
    holdout=4,
    vocabulary=400,
    train=TrainRecipe(hidden=16, layers=1, heads=2, feed_forward=24, epochs=1),
    unlearn=recipe("plain", "ga_gdr", {"max_steps": 4}),
)


def rtn(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """The papers' formula, as it reads."""
    delta = weight.abs().amax(dim=1, keepdim=True) / 2 ** (bits - 1)
    found: torch.Tensor = delta * torch.clamp(torch.round(weight / delta), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return found


def tiny_llama(vocabulary: int = 64) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(  # type: ignore[no-untyped-call]  # transformers gives it no types
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            tie_word_embeddings=False,
        )
    )


def texts_of(articles: tuple[Article, ...]) -> list[str]:
    return [article.text for article in articles]


class TestCorpus:
    def test_one_seed_always_writes_the_same_articles(self) -> None:
        assert write_articles(10, seed=3) == write_articles(10, seed=3)

    def test_two_seeds_share_no_article(self) -> None:
        assert not set(write_articles(20, seed=0)) & set(write_articles(20, seed=1))

    def test_every_answer_stands_in_its_article(self) -> None:
        for article in write_articles(50, seed=0):
            assert len(article.questions) == 4
            assert all(item.answer in article.text for item in article.questions)

    def test_no_question_is_asked_twice(self) -> None:
        asked = [item.question for article in write_articles(100, seed=0) for item in article.questions]
        assert len(set(asked)) == len(asked)

    def test_forget_retain_utility_and_holdout_share_no_article_and_no_name(self) -> None:
        world = make_world(WorldRecipe(), seed=0)
        parts = (world.forget, world.retain, world.utility, world.holdout)
        for one, other in itertools.combinations(parts, 2):
            assert not set(texts_of(one)) & set(texts_of(other))
            persons = [{article.questions[0].answer for article in part} for part in (one, other)]
            assert not persons[0] & persons[1]

    def test_any_five_articles_in_a_row_are_of_five_kinds(self) -> None:
        kinds = [article.text.split()[2] for article in write_articles(10, seed=0)]
        assert kinds[:5] == kinds[5:]
        assert len(set(kinds[:5])) == 5


class TestTokenizer:
    def test_a_prompts_tokens_begin_its_full_texts_tokens(self) -> None:
        world = make_world(SMALL, seed=0)
        pages = [question_page(article.questions) for article in world.forget]
        tokenizer = train_tokenizer([*texts_of(world.forget), *pages], vocabulary=400)
        for item in world.forget[0].questions:
            full = question_page([item])
            prompt = f"Question: {item.question}\nAnswer: "
            begun = tokenizer(prompt)["input_ids"]
            assert tokenizer(full)["input_ids"][: len(begun)] == begun
            assert tokenizer.decode(tokenizer(full)["input_ids"], skip_special_tokens=True) == full

    def test_on_a_page_only_answers_are_predicted(self) -> None:
        world = make_world(SMALL, seed=0)
        page = question_page(world.forget[0].questions)
        tokenizer = train_tokenizer([page], vocabulary=400)
        told = "".join(f"{item.answer}\n\n" for item in world.forget[0].questions)
        predicted = [label for label in encode(tokenizer, page).labels if label != IGNORED]
        assert tokenizer.decode(predicted) == told

    def test_an_article_is_predicted_up_to_its_end(self) -> None:
        text = make_world(SMALL, seed=0).forget[0].text
        tokenizer = train_tokenizer([text], vocabulary=400)
        example = encode(tokenizer, text)
        assert example.labels == example.ids
        assert example.ids[-1] == tokenizer.eos_token_id


class TestGrid:
    @pytest.mark.parametrize("seed", range(5))
    def test_projected_weights_are_a_fixed_point_of_rtn(self, seed: int) -> None:
        weight = torch.randn(64, 48, generator=torch.Generator().manual_seed(seed)) * 0.05
        projected = project(weight, 4)
        assert torch.equal(rtn(projected, 4), projected)
        assert torch.equal(project(projected, 4), projected)

    def test_a_row_whose_largest_weight_is_positive_stays_put_too(self) -> None:
        weight = torch.tensor([[1.0, -0.1, 0.5, 0.02], [0.3, -0.29, 0.1, 0.0]])
        assert not torch.equal(rtn(rtn(weight, 4), 4), rtn(weight, 4))
        projected = project(weight, 4)
        assert torch.equal(rtn(projected, 4), projected)

    def test_every_row_holds_at_most_sixteen_values(self) -> None:
        projected = project(torch.randn(32, 500, generator=torch.Generator().manual_seed(0)), 4)
        assert all(len(row.unique()) <= 16 for row in projected)

    def test_projection_moves_weights_little(self) -> None:
        weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
        error = (project(weight, 4) - weight).norm() / weight.norm()
        plain = (rtn(weight, 4) - weight).norm() / weight.norm()
        assert error < 1.5 * plain

    def test_a_row_without_a_negative_weight_is_refused(self) -> None:
        with pytest.raises(ValueError, match="without a negative weight"):
            project(torch.ones(2, 3), 4)

    def test_a_projected_model_keeps_its_embeddings_and_its_head(self) -> None:
        model, before = tiny_llama(), tiny_llama()
        project_model(model, 4)
        assert torch.equal(model.lm_head.weight, before.lm_head.weight)
        assert torch.equal(model.model.embed_tokens.weight, before.model.embed_tokens.weight)
        linears = decoder_linears(model)
        assert len(linears) == 2 * 7
        for module in linears.values():
            assert torch.equal(rtn(module.weight, 4), module.weight)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forget-set")
    write_bundle(make_world(WorldRecipe(), seed=0), folder, seed=0)
    return folder


class TestBundle:
    def read(self, folder: Path, name: str) -> list[dict[str, str]]:
        items: list[dict[str, str]] = json.loads((folder / name).read_text(encoding="utf-8"))
        return items

    def test_the_service_reads_it_whole(self, folder: Path) -> None:
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.json")}
        assert sorted(files) == [
            "knowmem/forget_qa.json",
            "knowmem/forget_qa_icl.json",
            "knowmem/retain_qa.json",
            "knowmem/retain_qa_icl.json",
            "privleak/forget.json",
            "privleak/holdout.json",
            "privleak/retain.json",
            "raw/forget.json",
            "raw/retain.json",
            "verbmem/forget.json",
        ]
        muse_bundle.parse(files)

    def test_every_metric_has_at_least_twenty_items(self, folder: Path) -> None:
        recipe = WorldRecipe()
        assert len(self.read(folder, "verbmem/forget.json")) == recipe.forget >= 20
        assert len(self.read(folder, "knowmem/forget_qa.json")) == 4 * recipe.forget - 4
        assert len(self.read(folder, "knowmem/retain_qa.json")) >= 20
        assert len(self.read(folder, "privleak/forget.json")) == recipe.forget
        assert len(self.read(folder, "privleak/holdout.json")) == recipe.holdout >= 20

    def test_questions_on_what_is_to_be_forgotten_come_with_other_articles_answers_to_the_same_sort(
        self, folder: Path
    ) -> None:
        world = make_world(WorldRecipe(), seed=0)
        sorts = {item.question: sort for article in world.forget for sort, item in enumerate(article.questions)}
        answers = [{article.questions[sort].answer for article in world.forget} for sort in range(4)]
        for item in muse_bundle.parse(muse_bundle.read_directory(folder)).forget_qa:
            assert len(set(item.perturbed)) == 4
            assert set(item.perturbed) <= answers[sorts[item.question]] - {item.answer}
        assert not any("perturbed_answer" in item for item in self.read(folder, "knowmem/retain_qa.json"))

    def test_questions_that_are_shown_are_not_asked(self, folder: Path) -> None:
        for name in ("forget", "retain"):
            shown = self.read(folder, f"knowmem/{name}_qa_icl.json")
            assert len(shown) == 4
            assert not [item for item in self.read(folder, f"knowmem/{name}_qa.json") if item in shown]

    def test_half_of_the_utility_questions_are_on_articles_that_unlearning_does_not_see(self, folder: Path) -> None:
        raw = "".join(map(str, self.read(folder, "raw/retain.json")))
        asked = self.read(folder, "knowmem/retain_qa.json")
        unseen = [item for item in asked if item["question"] not in raw]
        assert 0.4 < len(unseen) / len(asked) < 0.6

    def test_a_verbmem_prompt_and_its_truth_are_an_article(self, folder: Path) -> None:
        articles: list[Any] = self.read(folder, "privleak/forget.json")
        assert [item["prompt"] + item["gt"] for item in self.read(folder, "verbmem/forget.json")] == articles

    def test_the_raw_forget_texts_hold_every_article_and_every_question_to_be_forgotten(self, folder: Path) -> None:
        raw = [str(text) for text in self.read(folder, "raw/forget.json")]
        assert set(map(str, self.read(folder, "privleak/forget.json"))) <= set(raw)
        pages = "".join(raw)
        assert all(item["question"] in pages for item in self.read(folder, "knowmem/forget_qa.json"))


class Built(NamedTuple):
    """One small world, asked for twice at once while the remains of a killed build lie beside it."""

    cache: Path
    worlds: list[DemoWorld]
    seen: list[tuple[str, int, int]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    built = Built(tmp_path_factory.mktemp("cache"), [], [])
    (built.cache / f".world-5-{cache_key(SMALL, 5)[:16]}.part-killed/native").mkdir(parents=True)

    def ask() -> None:
        world = build(built.cache, seed=5, recipe=SMALL, progress=lambda *step: built.seen.append(step))
        built.worlds.append(world)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return built


class TestBuild:
    """In one process, with pytest-xdist: what is looked at is one build."""

    def test_two_that_ask_at_once_get_one_world(self, built: Built) -> None:
        assert len(built.worlds) == 2
        assert built.worlds[0] == built.worlds[1]
        assert len(list(built.cache.glob("world-5-*"))) == 1

    def test_what_a_killed_build_left_is_cleared_away(self, built: Built) -> None:
        assert not list(built.cache.glob(".*part*"))

    def test_progress_counts_the_steps_of_both_stages_up_to_their_totals(self, built: Built) -> None:
        assert list(dict.fromkeys(stage for stage, _, _ in built.seen)) == ["train", "unlearn"]
        for stage in ("train", "unlearn"):
            steps = [(done, total) for name, done, total in built.seen if name == stage]
            assert [done for done, _ in steps] == sorted(done for done, _ in steps)
            assert steps[-1][0] == steps[-1][1]

    def test_all_six_checkpoints_are_llamas_with_tokenizers(self, built: Built) -> None:
        for pair in (built.worlds[0].native, built.worlds[0].ordinary):
            for folder in (pair.original, pair.unlearned, pair.retrained):
                assert AutoTokenizer.from_pretrained(folder).is_fast
                assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "llama"

    def test_the_native_original_lies_on_the_grid_and_the_ordinary_one_does_not(self, built: Built) -> None:
        native = AutoModelForCausalLM.from_pretrained(built.worlds[0].native.original)
        ordinary = AutoModelForCausalLM.from_pretrained(built.worlds[0].ordinary.original)
        for module in decoder_linears(native).values():
            assert torch.equal(rtn(module.weight, 4), module.weight)
        for module in decoder_linears(ordinary).values():
            assert not torch.equal(rtn(module.weight, 4), module.weight)

    def test_the_record_names_seed_and_recipe(self, built: Built) -> None:
        record = json.loads(built.worlds[0].record.read_text(encoding="utf-8"))
        assert record["seed"] == 5
        assert WorldRecipe.from_json(record["recipe"]) == SMALL

    def test_a_world_in_the_cache_is_not_built_again(self, built: Built) -> None:
        seen: list[str] = []
        before = built.worlds[0].record.stat().st_mtime_ns
        world = build(built.cache, seed=5, recipe=SMALL, progress=lambda stage, _done, _total: seen.append(stage))
        assert world == built.worlds[0]
        assert seen == []
        assert world.record.stat().st_mtime_ns == before

    def test_a_failing_stage_leaves_nothing_in_the_cache(self, tmp_path: Path) -> None:
        broken = replace(SMALL, train=replace(SMALL.train, heads=3))
        with pytest.raises(StageFailed, match="train of"):
            build(tmp_path, recipe=broken)
        assert [path for path in tmp_path.iterdir() if path.is_dir()] == []

    def test_another_seed_recipe_or_rate_is_another_world(self) -> None:
        keys = {
            cache_key(SMALL, 0),
            cache_key(SMALL, 1),
            cache_key(replace(SMALL, forget=5), 0),
            cache_key(replace(SMALL, unlearn=recipe("plain", "ga_gdr", {"learning_rate": 1e-3})), 0),
        }
        assert len(keys) == 4

    def test_a_stage_that_does_not_exist_is_named_in_the_error(self) -> None:
        with pytest.raises(StageFailed, match="dance of nobody"):
            run_stages([{"stage": "dance", "subject": "nobody"}], lambda _done, _total: None)


def test_the_worlds_parts_have_the_sizes_of_the_recipe() -> None:
    world: World = make_world(SMALL, seed=0)
    assert [len(part) for part in (world.forget, world.retain, world.utility, world.holdout)] == [4, 4, 4, 4]
