"""`make bench-methods`: Table 1 of arXiv 2410.16454 on the tiny world.

{six losses in small steps, SURE, LoRA, control} x {full, 8-bit, 4-bit} x {VerbMem, KnowMem f, PrivLeak, KnowMem r},
mean and standard deviation over seeds, on the pair whose original lies on a 4-bit grid. Every model is unlearned anew
here.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch

from app.catalog.metrics import DEFAULT_METRICS
from app.catalog.recipes import LOSSES, Recipe, recipe
from app.errors import AppError
from app.evidence.evaluation import Evaluation
from app.forget_sets.bundle import parse, read_directory
from app.judgement.statistics.retention import raw_auc
from worker.engine.demo import DemoWorld, build
from worker.engine.demo.recipe import LORA, SURE
from worker.engine.evaluate import evaluate
from worker.engine.unlearning.unlearn import unlearn

PRECISIONS = ("full", "rtn-int8", "rtn-int4")
REFERENCES = ("original", "retrained")

SMALL = {
    "learning_rate": 5e-5,
    "alpha": 1.5,
    "batch_size": 6,
    "retain_batch_size": 12,
    "max_steps": 300,
    "modules": "linear",
    "npo_ratio": "mean",
}
"""Small steps, the same for all six losses. GA and NPO alone have no retain loss, and no floor of utility
here: they go on until the watched items are forgotten, as in the paper they collapse."""


def recipes(seed: int) -> dict[str, Recipe]:
    """Row of the table -> what is done."""
    found = {}
    for loss in LOSSES:
        floor = 0.6 if "_" in loss else 0.0
        found[loss.upper()] = recipe("plain", loss, SMALL | {"stop": {"every": 10, "utility_floor": floor}})
    found[f"SURE ({SURE.loss.upper()})"] = SURE
    found[f"LoRA ({LORA.loss.upper()})"] = LORA
    found["control"] = SURE.model_copy(update={"method": "control"})
    return {
        name: one.model_copy(update={"hyperparameters": one.hyperparameters.model_copy(update={"seed": seed})})
        for name, one in found.items()
    }


class Measured(NamedTuple):
    """A row of one seed: precision -> metric -> score, and how unlearning ended."""

    seed: int
    name: str
    ended: str
    evaluations: dict[str, Evaluation]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, action="append", help="give it several times; default 0, 1 and 2")
    parser.add_argument("--pair", choices=("native", "ordinary"), default="native")
    parser.add_argument(
        "--only", action="append", choices=list(recipes(0)), help="rows of the table, e.g. GA_GDR; default: all"
    )
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/lethe/demo", help="where worlds are kept")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write all scores here, as JSON")
    options = parser.parse_args()
    seeds = options.seed or [0, 1, 2]
    worlds = {seed: build(options.cache, seed=seed) for seed in seeds}
    names = [name for name in recipes(0) if not options.only or name in options.only]
    pool = ProcessPoolExecutor(options.processes, mp_context=get_context("spawn"))
    with pool:
        waiting = [
            pool.submit(measure, worlds[seed], options.pair, seed, name)
            for seed in seeds
            for name in (*REFERENCES, *names)
        ]
        measured = []
        for done in as_completed(waiting):
            measured.append(done.result())
            print(f"seed {measured[-1].seed} {measured[-1].name}: {measured[-1].ended}", flush=True)
    scores = {(m.seed, m.name): scored(m, measured) for m in measured}
    if options.out:
        rows = [{"seed": s, "row": n, "scores": found} for (s, n), found in sorted(scores.items())]
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"\n{options.pair} pair, seeds {', '.join(map(str, seeds))}; PrivLeak against the retrained model\n")
    print(table([*REFERENCES, *names], seeds, scores))


def measure(world: DemoWorld, pair: str, seed: int, name: str) -> Measured:
    """Unlearn as the row says, and evaluate at every precision."""
    torch.set_num_threads(1)
    bundle = parse(read_directory(world.forget_set))
    models = getattr(world, pair)
    with tempfile.TemporaryDirectory() as folder:
        path, ended = Path(folder) / "unlearned", ""
        if name in REFERENCES:
            path = getattr(models, name)
        else:
            try:
                record = unlearn(models.original, path, bundle, recipes(seed)[name])
            except AppError as error:
                return Measured(seed, name, f"{error.code}: {error.detail}", {})
            ended = f"{record.stopped} at step {record.steps}"
        return Measured(seed, name, ended, {p: evaluate(path, p, bundle, metrics=DEFAULT_METRICS) for p in PRECISIONS})


def scored(row: Measured, all_rows: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Precision -> metric -> score x100."""
    gold = next(m for m in all_rows if m.name == "retrained" and m.seed == row.seed)
    found: dict[str, dict[str, float]] = {}
    for precision, evaluation in row.evaluations.items():
        aucs = raw_auc({"unlearned": evaluation, "retrained": gold.evaluations[precision]})
        here = {"privleak": 100 * (aucs["unlearned"] - aucs["retrained"]) / aucs["retrained"]}
        for metric in DEFAULT_METRICS:
            scores = getattr(evaluation, metric)
            if metric != "privleak" and scores is not None:
                here[metric] = 100 * statistics.fmean(scores.scores)
        found[precision] = here
    return found


def table(
    names: Sequence[str], seeds: Sequence[int], scores: dict[tuple[int, str], dict[str, dict[str, float]]]
) -> str:
    """Markdown: a line per model and precision."""
    lines = ["| | precision | VerbMem | KnowMem f | PrivLeak | KnowMem r |", "|---|---|---|---|---|---|"]
    for name in names:
        found = [scores[seed, name] for seed in seeds if scores[seed, name]]
        for precision in PRECISIONS:
            cells = [spread([one[precision][metric] for one in found]) for metric in DEFAULT_METRICS]
            missing = "" if len(found) == len(seeds) else f" ({len(found)} of {len(seeds)} seeds)"
            lines.append(f"| {name if precision == 'full' else ''}{missing} | {precision} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.0f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.0f}"


if __name__ == "__main__":
    main()
