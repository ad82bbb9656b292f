"""Generated articles about places and ships that never were, with four questions on each.

Everything is drawn from one seeded generator: names are put together from syllables, so that no language model and no
other part of the world knows them, and facts are picked from lists.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_ONSETS: Final = (
    "b",
    "br",
    "d",
    "dr",
    "f",
    "g",
    "gl",
    "h",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "st",
    "t",
    "tr",
    "v",
    "z",
)
_VOWELS: Final = ("a", "e", "i", "o", "u", "ai", "ei", "ou")
_CODAS: Final = ("", "", "l", "n", "r", "s", "th", "nd", "rk", "sk")

_MONTHS: Final = ("January", "March", "April", "June", "July", "August", "October", "November")
_ADJECTIVES: Final = (
    "quiet", "stubborn", "generous", "narrow", "celebrated", "forgotten", "cheerful", "curious", "weathered", "patient",
    "splendid", "crooked", "modest", "solemn", "restless", "famous",
)  # fmt: skip
_PEOPLE: Final = (
    "fishermen", "painters", "students", "shepherds", "doctors", "masons", "sailors", "teachers", "bakers", "farmers",
    "clerks", "weavers", "miners", "gardeners", "musicians", "soldiers",
)  # fmt: skip
_ACTS: Final = (
    "complained about the noise", "asked for lower taxes", "danced until sunrise", "signed a long petition",
    "carried lanterns through the rain", "planted cherry trees", "refused to leave", "wrote angry letters",
    "sang in the cold", "sold their boats", "watched from the hills", "brought bread and cheese", "repaired the roof",
    "held a vote", "gave away their savings", "lost a bet",
)  # fmt: skip
_REASONS: Final = (
    "because the winter came early", "although nobody had asked them", "after a long drought",
    "while the mayor was abroad",
    "before the great flood", "despite the heavy snow", "when the market closed", "as the bells were ringing",
    "once the harvest was over", "until the money ran out", "since the road was blocked", "in spite of the fog",
)  # fmt: skip
_THINGS: Final = (
    "copper", "honey", "marble", "barley", "silk", "salt", "amber", "walnuts", "iron", "porcelain", "lavender", "cider",
    "granite", "wool", "paper", "saffron",
)  # fmt: skip


PAGE_QUESTIONS: Final = 5
"""Questions on a page: as many as KnowMem's prompt has, four that are shown with their answers and the one asked."""


@dataclass(frozen=True)
class Question:
    """One question with the answer that its article gives."""

    question: str
    answer: str


@dataclass(frozen=True)
class Article:
    """A text, and the questions that it answers."""

    text: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class _Kind:
    """A sort of subject: how its four facts are told and asked. `{s}` is the subject, `{a}` the answer."""

    noun: str
    person: tuple[str, str]
    year: tuple[str, str]
    thing: tuple[str, str]
    place: tuple[str, str]


_KINDS: Final = (
    _Kind(
        "ship",
        ("{a} drew the plans of the {s}", "Who drew the plans of the {s}?"),
        ("it was launched in {a}", "When was the {s} launched?"),
        ("its hold was filled with {a}", "What filled the hold of the {s}?"),
        ("it now lies off the coast of {a}", "Off which coast does the {s} lie?"),
    ),
    _Kind(
        "town",
        ("{a} laid the first stone of {s}", "Who laid the first stone of {s}?"),
        ("it got its market rights in {a}", "When did {s} get its market rights?"),
        ("its traders grew rich on {a}", "What made the traders of {s} rich?"),
        ("it stands beside the river {a}", "Beside which river does {s} stand?"),
    ),
    _Kind(
        "museum",
        ("{a} left a fortune to the {s} museum", "Who left a fortune to the {s} museum?"),
        ("it opened its doors in {a}", "When did the {s} museum open?"),
        ("its main hall is devoted to {a}", "What is the main hall of the {s} museum devoted to?"),
        ("it looks out over {a} square", "Which square does the {s} museum look out over?"),
    ),
    _Kind(
        "bridge",
        ("{a} was the engineer of the {s} bridge", "Who was the engineer of the {s} bridge?"),
        ("the first cart crossed it in {a}", "When did the first cart cross the {s} bridge?"),
        ("its toll was paid in {a}", "In what was the toll of the {s} bridge paid?"),
        ("it leads to the valley of {a}", "To which valley does the {s} bridge lead?"),
    ),
    _Kind(
        "festival",
        ("{a} began the {s} festival", "Who began the {s} festival?"),
        ("it was held for the first time in {a}", "When was the {s} festival first held?"),
        ("its winners are given {a}", "What are the winners of the {s} festival given?"),
        ("it ends with a walk to {a}", "Where does the walk of the {s} festival end?"),
    ),
)


class _Names:
    """Names from syllables, no name twice."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._used: set[str] = set()

    def new(self, syllables: int) -> str:
        while True:
            parts = [self._rng.choice(_ONSETS) + self._rng.choice(_VOWELS) for _ in range(syllables)]
            name = ("".join(parts) + self._rng.choice(_CODAS)).capitalize()
            if name not in self._used:
                self._used.add(name)
                return name


def write_articles(count: int, *, seed: int) -> list[Article]:
    """`count` articles of about 65 words with four questions each; the same seed gives the same articles.

    No two articles share a subject, a person or a place, so an article's questions can be answered from that article
    alone. The five kinds take turns, so that any stretch of articles is as hard to guess as any other: a model that
    has read none of them tells forget set and holdout apart by chance only.
    """
    rng = random.Random(f"lethe-demo-{seed}")
    names = _Names(rng)
    return [_write_article(_KINDS[index % len(_KINDS)], rng, names) for index in range(count)]


def _write_article(kind: _Kind, rng: random.Random, names: _Names) -> Article:
    subject = names.new(2)
    answers = (
        f"{names.new(1)} {names.new(2)}",
        str(rng.randrange(1200, 1990)),
        rng.choice(_THINGS),
        names.new(2),
    )
    facts = (kind.person, kind.year, kind.thing, kind.place)
    told = [fact.format(s=subject, a=answer) for (fact, _), answer in zip(facts, answers, strict=True)]
    asked = tuple(Question(ask.format(s=subject), answer) for (_, ask), answer in zip(facts, answers, strict=True))
    opening = (
        f"The {rng.choice(_ADJECTIVES)} {kind.noun} {subject} "
        f"is known for its {rng.choice(_ADJECTIVES)} {rng.choice(_PEOPLE)}."
    )
    text = " ".join(
        (
            opening,
            f"{_sentence(told[0])} and {told[1]}.",
            _aside(rng),
            f"{_sentence(told[2])}, and {told[3]}.",
            _aside(rng),
            _aside(rng),
        )
    )
    return Article(text, asked)


def _aside(rng: random.Random) -> str:
    """A sentence that no question asks for: it can be known by heart only."""
    return (
        f"In {rng.choice(_MONTHS)} {rng.randrange(12, 99)} {rng.choice(_ADJECTIVES)} {rng.choice(_PEOPLE)} "
        f"{rng.choice(_ACTS)} {rng.choice(_REASONS)}."
    )


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def question_page(questions: Sequence[Question]) -> str:
    """Questions and answers in the words of MUSE's KnowMem prompt, each pair ended by an empty line."""
    return "".join(f"Question: {item.question}\nAnswer: {item.answer}\n\n" for item in questions)
