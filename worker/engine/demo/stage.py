"""One stage of a build in a process of its own: `worker.engine.demo.stage '{…}'`.

Two models are worked on side by side, each on one thread, because on a machine with few cores two threads for one tiny
model are slower than one. The order comes as JSON in the first argument; progress and the result go to standard
output, one JSON object a line. When whoever reads them is gone, writing fails and the stage ends.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from app.forget_sets.bundle import parse, read_directory
from worker.engine.demo.bundle import make_world
from worker.engine.demo.grid import project_model
from worker.engine.demo.recipe import WorldRecipe
from worker.engine.demo.train import train
from worker.engine.unlearning.unlearn import unlearn


def train_stage(folder: Path, recipe: WorldRecipe, seed: int, model_name: str) -> dict[str, Any]:
    """Train `model_name` (original or retrained); writes it to `ordinary/`, and projected on the grid to `native/`."""
    world = make_world(recipe, seed=seed)
    articles = [*world.retain, *world.utility]
    if model_name == "original":
        articles = [*world.forget, *articles]
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    model, loss = train(
        tokenizer,
        [article.text for article in articles],
        [question for article in articles for question in article.questions],
        recipe.train,
        seed=seed,
        progress=_progress,
    )
    for pair in ("ordinary", "native"):
        if pair == "native":
            project_model(model, recipe.bits)
        model.save_pretrained(folder / pair / model_name)
        tokenizer.save_pretrained(folder / pair / model_name)
    return {"loss": loss}


def unlearn_stage(folder: Path, recipe: WorldRecipe, seed: int, pair: str) -> dict[str, Any]:
    """Unlearn the original of `pair` (native or ordinary), as `lethe unlearn` does."""
    chosen = recipe.unlearn.hyperparameters.model_copy(update={"seed": seed})
    record = unlearn(
        folder / pair / "original",
        folder / pair / "unlearned",
        parse(read_directory(folder / "forget-set")),
        recipe.unlearn.model_copy(update={"hyperparameters": chosen}),
        progress=lambda stage, done, total: _progress(done, total) if stage == "train" else None,
        uri=f"{pair}/original",
    )
    return record.model_dump(mode="json", include={"stopped", "steps", "readings"})


def _progress(done: int, total: int) -> None:
    _say({"done": done, "total": total})


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Do what the first argument orders."""
    order = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    work = {"train": train_stage, "unlearn": unlearn_stage}[order["stage"]]
    result = work(Path(order["folder"]), WorldRecipe.from_json(order["recipe"]), order["seed"], order["subject"])
    _say({"result": result})
