"""Stand-ins for the engine: models that score what their files say, and an unlearning that writes such a model."""

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.catalog.recipes import Recipe
from app.checkpoints.format import digests, files
from app.evidence import evaluation as schemas
from app.evidence.unlearning import LossPoint, ModuleSaliency, StopReason, Unlearned
from app.forget_sets.bundle import Bundle
from tests.support.checkpoints import write_checkpoint
from tests.support.judgement.evaluations import MEMBER, OUTSIDER, evaluation

Scores = dict[str, tuple[float, float]]
"""Precision -> KnowMem on forget, KnowMem on retain; 90 and 90 where nothing is said."""

FORGOT_IN_FULL: Scores = {"full": (10, 90), "rtn-int8": (10, 90), "rtn-int4": (88, 90)}
ROBUST: Scores = {"full": (10, 90), "rtn-int8": (12, 90), "rtn-int4": (11, 90)}
BROKEN: Scores = {"full": (0, 3), "rtn-int8": (0, 2), "rtn-int4": (0, 1)}


def say(checkpoint: Path | str, scores: Scores) -> str:
    """Let a checkpoint score so."""
    (Path(checkpoint) / "scores.json").write_text(json.dumps(scores))
    return str(checkpoint)


def evaluate(checkpoint: Path, precision: str, bundle: Bundle, **kwargs: Any) -> schemas.Evaluation:
    """The scores that the checkpoint's files say; who knows the answers knows the texts."""
    kwargs["progress"]("knowmem_forget", 0, 1)
    file = checkpoint / "scores.json"
    forget, retain = (json.loads(file.read_text()) if file.exists() else {}).get(precision, (90, 90))
    membership = MEMBER if forget >= 50 else OUTSIDER
    return evaluation(forget=forget, retain=retain, items=24, precision=precision, membership=membership)


class Unlearning:
    """Writes a copy of the original that scores as `scores` says of the recipe; its state is the step that it is at."""

    def __init__(
        self,
        scores: Callable[[Recipe], Scores] = lambda recipe: ROBUST,
        *,
        steps: int = 4,
        stopped: StopReason = "steps",
        at: Callable[[int], None] = lambda step: None,
    ) -> None:
        self.scores, self.steps, self.stopped, self.at = scores, steps, stopped, at
        self.recipes: list[Recipe] = []

    def __call__(
        self,
        original: Path,
        out: Path,
        bundle: Bundle,
        recipe: Recipe,
        *,
        work: Path | None = None,
        device: str | None = None,
        progress: Callable[[str, int, int], None] | None = None,
        on_loss: Callable[[LossPoint], None] | None = None,
        expected: str | None = None,
        uri: str | None = None,
    ) -> Unlearned:
        digests.check_digest(original, digests.digest(original), expected)
        assert bundle.raw_forget
        assert work is not None
        assert progress is not None
        assert on_loss is not None
        self.recipes.append(recipe)
        state = work / "step"
        done = int(state.read_text()) if state.exists() else 0
        points = [_point(step) for step in range(1, self.steps + 1)]
        for point in points[done:]:
            self.at(point.step)
            progress("train", point.step, self.steps)
            on_loss(point)
            work.mkdir(parents=True, exist_ok=True)
            state.write_text(str(point.step))
        shutil.copytree(original, out)
        say(out, self.scores(recipe))
        write_checkpoint(out, value=zlib.crc32(recipe.model_dump_json().encode()))  # each recipe's model is its own
        found = files.inspect(original)
        return Unlearned(
            recipe=recipe,
            original=schemas.CheckpointInfo(
                uri=uri or str(original),
                digest=digests.digest(original),
                architecture=found.architecture,
                parameters=16,
                dtype="F32",
            ),
            forget_set=bundle.info(),
            engine=schemas.EngineInfo(
                lethe="0", python="3", torch="0", transformers="0", device="cpu", dtype="float32", seed=0, settings={}
            ),
            digest=digests.digest(out),
            stopped=self.stopped,
            steps=self.steps,
            steps_planned=self.steps,
            resumed=int(done > 0),
            losses=points,
            saliency=[ModuleSaliency(module="layers.0.mlp", parameters=16, saliency=2.5, updated=16)],
            parameters_total=16,
            parameters_trained=8,
            parameters_changed=4,
            peak_memory={"weights": 64},
            seconds={"train": 0.1},
        )


def _point(step: int) -> LossPoint:
    return LossPoint(step=step, loss=4.0 / step, forget=-1.0 * step, retain=1.0, learning_rate=1e-4)
