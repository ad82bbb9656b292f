"""Build the tiny world, or take it from the cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tokenizers
import torch
import transformers
from filelock import FileLock

from worker.engine import unlearning
from worker.engine.demo.bundle import make_world, write_bundle
from worker.engine.demo.children import run_stages
from worker.engine.demo.corpus import question_page
from worker.engine.demo.recipe import WorldRecipe
from worker.engine.demo.tokenizer import train_tokenizer

Progress = Callable[[str, int, int], None]

_SOURCES: Final = sorted(path for here in (__file__, unlearning.__file__) for path in Path(here).parent.rglob("*.py"))


@dataclass(frozen=True)
class Pair:
    """Three checkpoint directories: what was trained, what was made to forget, what never knew."""

    original: Path
    unlearned: Path
    retrained: Path


@dataclass(frozen=True)
class DemoWorld:
    """A forget set and two pairs that differ in one thing: whether the original's linear weights lie on a 4-bit grid.

    `forget_set` is a MUSE bundle directory. `native`'s original (and retrained) weights lie on the per-channel RTN
    4-bit grid, as those of a model released in 4 bits do; `ordinary`'s are the same models before that projection.
    Both were unlearned by the same method with the same settings. `record` is `demo.json`: recipe, seed, versions,
    where unlearning stopped, seconds.
    """

    forget_set: Path
    native: Pair
    ordinary: Pair
    record: Path


def build(
    cache: Path, *, seed: int = 0, progress: Progress | None = None, recipe: WorldRecipe | None = None
) -> DemoWorld:
    """The tiny world of `seed`, below `cache`: at most built once for the same recipe, seed, code and versions.

    The first build takes one to four minutes on two cores, with two child processes at work. `progress(stage, done,
    total)` is called from this process, with the stages `train` and `unlearn`. A build appears in the cache whole or
    not at all; a second process that asks for the same world waits for the first. Raises `children.StageFailed` if a
    child fails.
    """
    recipe = recipe or WorldRecipe()
    key = cache_key(recipe, seed)
    folder = cache / f"world-{seed}-{key[:16]}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{folder.name}.lock"):
            if not folder.is_dir():
                _build(folder, recipe, seed, progress or (lambda _stage, _done, _total: None))
    return _world(folder)


def cache_key(recipe: WorldRecipe, seed: int) -> str:
    """SHA-256 in hex over all that the world follows from: recipe, seed, this code, and the libraries' versions."""
    code = hashlib.sha256()
    for path in _SOURCES:
        code.update(path.read_bytes())
    facts = {"recipe": recipe.to_json(), "seed": seed, "code": code.hexdigest(), "versions": _versions()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _build(folder: Path, recipe: WorldRecipe, seed: int, progress: Progress) -> None:
    began = time.monotonic()
    for left in folder.parent.glob(f".{folder.name}.part-*"):
        shutil.rmtree(left, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.part-", dir=folder.parent))
    try:
        world = make_world(recipe, seed=seed)
        write_bundle(world, part / "forget-set", seed=seed)
        articles = [*world.forget, *world.retain, *world.utility, *world.holdout]
        texts = [text for article in articles for text in (article.text, question_page(article.questions))]
        train_tokenizer(texts, vocabulary=recipe.vocabulary).save_pretrained(part / "tokenizer")

        def stage(name: str, subjects: tuple[str, str]) -> dict[str, Any]:
            order = {"stage": name, "folder": str(part), "recipe": recipe.to_json(), "seed": seed}
            results = run_stages(
                [{**order, "subject": subject} for subject in subjects],
                lambda done, total: progress(name, done, total),
            )
            return dict(zip(subjects, results, strict=True))

        trained = stage("train", ("original", "retrained"))
        seconds = {"train": round(time.monotonic() - began, 1)}
        unlearned = stage("unlearn", ("native", "ordinary"))
        seconds["total"] = round(time.monotonic() - began, 1)
        shutil.rmtree(part / "tokenizer")
        record = {
            "seed": seed,
            "recipe": recipe.to_json(),
            "versions": _versions(),
            "trained": trained,
            "unlearned": unlearned,
            "seconds": seconds,
        }
        (part / "demo.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        # mkdtemp made it for its owner alone, as it should while it is half built.
        part.chmod(0o755)
        os.rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _versions() -> dict[str, str]:
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }


def _world(folder: Path) -> DemoWorld:
    native, ordinary = (
        Pair(folder / pair / "original", folder / pair / "unlearned", folder / pair / "retrained")
        for pair in ("native", "ordinary")
    )
    return DemoWorld(folder / "forget-set", native, ordinary, folder / "demo.json")
