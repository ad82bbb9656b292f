"""Training from the newest state to its end, whatever end that is."""

from __future__ import annotations

from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from app.evidence.unlearning import LossPoint, Reading, StopReason
from worker.engine.unlearning.trainer import Diverged, Training, Unlearner, last_state


class Trained(NamedTuple):
    """How training ended; the model holds the state of step `steps`."""

    stopped: StopReason
    steps: int
    losses: list[LossPoint]
    readings: list[Reading]
    memory: dict[str, int]
    texts: int
    """Forget texts (pieces of them, where they were cut)."""


def train(model: PreTrainedModel, training: Training) -> Trained:
    """Train what requires a gradient, in place, going on from the newest state in the work folder.

    Raises:
        UnlearningFailed: `non_finite`, `runaway` or `utility_floor` where no good state but the original is left;
            `nothing_to_forget` where the stop rule calls the original forgotten.
    """
    trainer = Unlearner(model, training)
    state = last_state(training.work)
    if state is None:
        trainer.begin()
    try:
        trainer.train(resume_from_checkpoint=None if state is None else str(state))
        reason = trainer.reason
        if not all(bool(torch.isfinite(parameter).all()) for parameter in trainer.trained.values()):
            reason = "non_finite"
    except Diverged as diverged:
        reason = diverged.reason
    steps = trainer.back(reason) if reason in ("non_finite", "runaway", "utility_floor") else trainer.state.global_step
    texts = len(training.objective.forget)
    return Trained(reason, steps, trainer.losses, trainer.readings, trainer.memory, texts)
