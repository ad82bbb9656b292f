"""Plain unlearning: everything that the recipe's `modules` names is trained."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from app.catalog.recipes import Hyperparameters
from worker.engine.inference.subject import Progress
from worker.engine.unlearning.objective import Objective
from worker.engine.unlearning.trainable import Trainable, candidates, train_only


def make_trainable(
    model: PreTrainedModel, chosen: Hyperparameters, objective: Objective, work: Path, progress: Progress
) -> Trainable:
    """Every parameter, or every weight of the decoder's linear layers."""
    return train_only(model, candidates(model, chosen))
