"""The world on disk: a MUSE bundle, in the folder layout and formats of MUSE's own data."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from worker.engine.demo.corpus import PAGE_QUESTIONS, Article, Question, question_page, write_articles
from worker.engine.demo.recipe import WorldRecipe

_PROMPT_WORDS: Final = 20
_ROUNDS: Final = 3
"""How often `raw/` has each question, among others each time: with once, answers were still known when passages had
been driven far beyond forgotten."""
_PERTURBED: Final = 4
"""Wrong answers to a question on the forget set."""


@dataclass(frozen=True)
class World:
    """The articles by what becomes of them.

    `forget`: read by the original, to be forgotten. `retain`: read, and shown again while unlearning. `utility`: read
    and never shown again, so that it tells what unlearning breaks elsewhere. `holdout`: read by no model. The
    retrained model reads `retain` and `utility` only.
    """

    forget: tuple[Article, ...]
    retain: tuple[Article, ...]
    utility: tuple[Article, ...]
    holdout: tuple[Article, ...]


def make_world(recipe: WorldRecipe, *, seed: int) -> World:
    """The articles of one seed, divided."""
    articles = iter(write_articles(recipe.forget + recipe.retain + recipe.utility + recipe.holdout, seed=seed))
    forget, retain, utility, holdout = (
        tuple(next(articles) for _ in range(count))
        for count in (recipe.forget, recipe.retain, recipe.utility, recipe.holdout)
    )
    return World(forget, retain, utility, holdout)


def write_bundle(world: World, folder: Path, *, seed: int) -> None:
    """Write `world` to `folder` as a MUSE bundle.

    KnowMem's utility questions are half on `utility`, half on `retain` articles. Its few-shot questions, one of each
    sort, come from four articles of the same set and are left out of the items. Those on the forget set come with wrong
    answers: the right ones to the same sort of question on other articles of the set, which were read as often.
    VerbMem's prompt is the first 20 words of an article, its truth the rest. `raw/` has what the original was trained
    on and unlearning works with: articles, and their questions on pages, each question `_ROUNDS` times.
    """
    rng = random.Random(seed)
    for name, articles in (("forget", world.forget), ("retain", (*world.utility, *world.retain[: len(world.utility)]))):
        shown = [article.questions[sort] for sort, article in enumerate(articles[: len(articles[0].questions)])]
        asked = [
            _pair(question) | ({"perturbed_answer": _wrong(articles, at, sort)} if name == "forget" else {})
            for at, article in enumerate(articles)
            for sort, question in enumerate(article.questions)
            if question not in shown
        ]
        # In an order without pattern: whoever takes every second item gets every sort of question.
        rng.shuffle(asked)
        _write(folder / f"knowmem/{name}_qa.json", asked)
        _write(folder / f"knowmem/{name}_qa_icl.json", [_pair(question) for question in shown])
    _write(folder / "verbmem/forget.json", [_passage(article.text) for article in world.forget])
    for name, articles in (("forget", world.forget), ("retain", world.utility), ("holdout", world.holdout)):
        _write(folder / f"privleak/{name}.json", [article.text for article in articles])
    for name, articles in (("forget", world.forget), ("retain", world.retain)):
        _write(folder / f"raw/{name}.json", [article.text for article in articles] + _pages(articles, rng))


def _pages(articles: Sequence[Article], rng: random.Random) -> list[str]:
    """Every question `_ROUNDS` times, each time shuffled into other pages."""
    questions = [question for article in articles for question in article.questions]
    pages = []
    for _ in range(_ROUNDS):
        rng.shuffle(questions)
        for start in range(0, len(questions), PAGE_QUESTIONS):
            pages.append(question_page(questions[start : start + PAGE_QUESTIONS]))
    return pages


def _wrong(articles: Sequence[Article], at: int, sort: int) -> list[str]:
    """What the articles after this one answer to the same sort of question, where that is something else."""
    others = [article.questions[sort].answer for article in (*articles[at + 1 :], *articles[:at])]
    distinct = dict.fromkeys(answer for answer in others if answer != articles[at].questions[sort].answer)
    return list(distinct)[:_PERTURBED]


def _pair(question: Question) -> dict[str, object]:
    return {"question": question.question, "answer": question.answer}


def _passage(text: str) -> dict[str, str]:
    words = text.split(" ")
    return {"prompt": " ".join(words[:_PROMPT_WORDS]), "gt": " " + " ".join(words[_PROMPT_WORDS:])}


def _write(path: Path, items: Sequence[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(items, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
