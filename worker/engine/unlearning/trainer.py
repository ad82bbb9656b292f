"""Transformers' Trainer, with unlearning's losses, its stop rule, and states to go on from.

What is Trainer's: the optimiser and its schedule, gradient accumulation and clipping, random states, going on from a
state. What is told here: which loss, when to stop, what of a model is worth saving (the parameters that are trained).
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from app.catalog.recipes import Hyperparameters
from app.errors import UnlearningFailed
from app.evidence.unlearning import LossPoint, Reading, StopReason
from worker.engine.inference.subject import Progress
from worker.engine.unlearning.last_good import LastGood
from worker.engine.unlearning.objective import Losses, Objective
from worker.engine.unlearning.stop_rule import StopReader, decide, forgotten
from worker.engine.unlearning.texts import Draw, Draws
from worker.engine.unlearning.trainable import FrozenRows

RUNAWAY_STEPS: Final = 5
"""Training has run away once the retain loss was above log|V| nats per token, that of guessing evenly, and above twice
what it was in the first step, in so many steps one after the other. (A loss without a part on retained texts
cannot run away: nothing says what it should keep.)"""

_TRAINED: Final = "trained.safetensors"
_STATE: Final = "state-"


@dataclass(frozen=True)
class Training:
    """What training works with."""

    objective: Objective
    chosen: Hyperparameters
    work: Path
    """Where states to go on from lie; `last_state` finds the newest."""
    vocabulary: int
    stop_reader: StopReader | None
    """Reads for the recipe's stop rule; None where it has none."""
    frozen_rows: FrozenRows | None
    progress: Progress
    on_loss: Callable[[LossPoint], None]

    @property
    def steps(self) -> int:
        """Optimiser steps that are planned."""
        return steps_planned(self.chosen, len(self.objective.forget))

    def draws(self) -> Draws:
        """What every forward pass reads."""
        chosen, objective = self.chosen, self.objective
        sizes = (chosen.batch_size, chosen.retain_batch_size or chosen.batch_size)
        count = self.steps * chosen.gradient_accumulation
        return Draws(len(objective.forget), len(objective.retain), sizes, count, chosen.seed)


class Diverged(Exception):
    """Training cannot go on."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason)
        self.reason = reason


def steps_planned(chosen: Hyperparameters, texts: int) -> int:
    """Optimiser steps of a recipe on so many forget texts."""
    per_step = chosen.batch_size * chosen.gradient_accumulation
    return chosen.max_steps or max(1, math.ceil(chosen.epochs * texts / per_step))


def last_state(work: Path) -> Path | None:
    """The folder of the newest state in `work`."""
    found = sorted(work.glob(f"{_STATE}*"), key=lambda path: int(path.name.removeprefix(_STATE)))
    return found[-1] if found else None


class Unlearner(Trainer):
    """Trainer, with the parts named above."""

    def __init__(self, model: PreTrainedModel, training: Training) -> None:
        chosen, work, steps = training.chosen, training.work, training.steps
        self.training = training
        self.chosen = chosen
        self.trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.last_good = LastGood(self.trained)
        self.losses: list[LossPoint] = []
        self.readings: list[Reading] = []
        self.memory: dict[str, int] = {}
        self.reason: StopReason = "steps"
        self.parts: list[tuple[float, float, float | None]] = []
        self.norm: float | None = None
        self.rate = chosen.learning_rate
        shutil.rmtree(work / "part", ignore_errors=True)
        arguments = TrainingArguments(
            output_dir=str(work / "part"),
            max_steps=steps,
            per_device_train_batch_size=1,  # an item is a draw: a whole batch
            gradient_accumulation_steps=chosen.gradient_accumulation,
            learning_rate=chosen.learning_rate,
            lr_scheduler_type="constant_with_warmup" if chosen.schedule == "constant" else chosen.schedule,
            warmup_steps=math.ceil(chosen.warmup_ratio * steps),
            weight_decay=chosen.weight_decay,
            max_grad_norm=chosen.max_grad_norm or 0.0,
            optim="adamw_torch",
            seed=chosen.seed,
            train_sampling_strategy="sequential",  # the order is the draws' own
            remove_unused_columns=False,
            use_cpu=model.device.type == "cpu",
            save_strategy="no",  # `_Steps` says when
            logging_strategy="no",
            logging_nan_inf_filter=False,
            disable_tqdm=True,
            report_to="none",
        )
        # Trainer would spread copies of the model over all GPUs that it sees.
        arguments._n_gpu = min(1, arguments.n_gpu)
        super().__init__(
            model=model, args=arguments, train_dataset=training.draws(), data_collator=_first, callbacks=[_Steps(self)]
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = False  # or gradients would not be divided by the accumulation

    def begin(self) -> None:
        """What the stop rule reads of the original."""
        if self.training.stop_reader is None or self.chosen.stop is None:
            return
        self.readings.append(self.training.stop_reader.read(0, self.training.progress))
        if forgotten(self.readings[0], self.chosen.stop):
            raise UnlearningFailed(
                "nothing_to_forget",
                f"by the stop rule the original has nothing to forget ({self.readings[0].model_dump_json()}); take the"
                " checkpoint that was trained on the forget set, or another stop rule",
            )

    # -- losses

    def compute_loss(self, model: Any, inputs: dict[str, list[int]], *_: Any, **__: Any) -> Tensor:  # type: ignore[override]
        """One forward pass of the objective; stops at what is no number."""
        losses = self.training.objective.losses(model, Draw(**inputs))
        self._check(losses)
        return losses.total

    def _check(self, losses: Losses) -> None:
        forget, total = float(losses.forget), float(losses.total.detach())
        retain = None if losses.retain is None else float(losses.retain)
        if not math.isfinite(total):
            raise Diverged("non_finite")
        step = self.state.global_step
        # These weights' own losses have just been seen to be sane; a state that is saved before is not known to be.
        due = (
            self.training.stop_reader is None
            and step > self.last_good.step
            and step % self.chosen.checkpoint_every == 0
        )
        if due and (retain is None or retain <= self.limit):
            self.mark_good(step)
        self.parts.append((total, forget, retain))

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        self.norm = float(norm)
        if not math.isfinite(self.norm):
            raise Diverged("non_finite")
        return norm

    def point(self, step: int) -> LossPoint:
        """The mean over the passes of the step that was just made."""
        total, forget, retain = (_mean([part[index] for part in self.parts]) for index in range(3))
        self.parts.clear()
        return LossPoint(
            step=step,
            loss=total or 0.0,
            forget=forget or 0.0,
            retain=retain,
            learning_rate=self.rate,
            gradient_norm=self.norm,
        )

    @property
    def limit(self) -> float:
        """The retain loss above which training may have run away."""
        return max(math.log(self.training.vocabulary), 2 * ((self.losses[0].retain if self.losses else None) or 0))

    def ran_away(self) -> bool:
        """Whether the last steps' retain losses were all those of guessing, or worse."""
        last = [point.retain for point in self.losses[-RUNAWAY_STEPS:]]
        return len(last) == RUNAWAY_STEPS and all(retain is not None and retain > self.limit for retain in last)

    # -- the last good state

    def mark_good(self, step: int) -> None:
        """Remember the trained parameters as good."""
        self.last_good.take(step)
        self.memory["last_good"] = self.last_good.bytes

    def back(self, reason: StopReason) -> int:
        """Go back to the last good state; its step."""
        if self.last_good.step:
            self.last_good.restore()
            return self.last_good.step
        at, limit = self.state.global_step, f"{self.limit:.1f} nats per token"
        detail = {
            "non_finite": f"training gave no finite numbers at step {at}",
            "runaway": f"the retain loss was above {limit} in the {RUNAWAY_STEPS} steps up to {at}",
            "utility_floor": f"utility fell below the stop rule's floor by step {at}, at its first reading",
        }[str(reason)]
        raise UnlearningFailed(
            reason,
            f"{detail}, and no good state but the original is left; take a smaller learning_rate or a larger alpha,"
            " or look more often (stop.every, checkpoint_every)",
        )

    # -- states to go on from

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A state appears whole or not at all, and takes the place of the one before."""
        told: Any = {
            "losses": [point.model_dump() for point in self.losses],
            "readings": [reading.model_dump() for reading in self.readings],
            "memory": self.memory,
        }
        self.state.log_history = [told]
        super()._save_checkpoint(model, trial)
        part = self.training.work / "part" / f"checkpoint-{self.state.global_step}"
        before = list(self.training.work.glob(f"{_STATE}*"))
        os.rename(part, self.training.work / f"{_STATE}{self.state.global_step}")
        for state in before:
            shutil.rmtree(state)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(str(output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: parameter.detach() for name, parameter in self.trained.items()}, folder / _TRAINED)
        self.last_good.save(folder)

    @torch.no_grad()
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        for name, value in load_file(folder / _TRAINED).items():
            self.trained[name].copy_(value)
        self.last_good.load(folder)

    def remember(self) -> None:
        """Take losses and readings from the state that training goes on from."""
        history: list[Any] = self.state.log_history
        for told in history:
            self.losses = [LossPoint(**point) for point in told["losses"]]
            self.readings = [Reading(**reading) for reading in told["readings"]]
            self.memory = told["memory"]

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: the inputs are indices."""
        return 0


class _Steps(TrainerCallback):
    """After each step: report it, read the model, decide."""

    def __init__(self, trainer: Unlearner) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.remember()
        self._trainer.training.progress("train", state.global_step, state.max_steps)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self._trainer
        trainer.rate = kwargs["lr_scheduler"].get_last_lr()[0]  # before the schedule goes on
        if trainer.training.frozen_rows is not None:
            trainer.training.frozen_rows.restore()
        if "optimizer" not in trainer.memory:
            gradients = [parameter.grad for parameter in trainer.trained.values() if parameter.grad is not None]
            moments = [
                value
                for state in kwargs["optimizer"].state.values()
                for value in state.values()
                if isinstance(value, Tensor)
            ]
            trainer.memory["gradients"] = sum(tensor.nbytes for tensor in gradients)
            trainer.memory["optimizer"] = sum(tensor.nbytes for tensor in moments)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer, step, training = self._trainer, state.global_step, self._trainer.training
        point = trainer.point(step)
        trainer.losses.append(point)
        training.on_loss(point)
        training.progress("train", step, state.max_steps)
        if trainer.ran_away():
            raise Diverged("runaway")
        rule = training.chosen.stop
        if (
            training.stop_reader is not None
            and rule is not None
            and (step % rule.every == 0 or step == state.max_steps)
        ):
            reading = training.stop_reader.read(step, training.progress)
            trainer.readings.append(reading)
            reason = decide(reading, trainer.readings[0], rule)
            if reason != "utility_floor":
                trainer.mark_good(step)
            if reason is not None:
                trainer.reason = reason
                control.should_training_stop = True
                return
        control.should_save = step % training.chosen.checkpoint_every == 0 and step < state.max_steps


def _first(items: Sequence[Draw]) -> dict[str, list[int]]:
    return items[0]._asdict()


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
