"""The training loop: transformers' Trainer, with unlearning's losses, its stop rule, and states to go on from.

What is Trainer's: the optimiser and its schedule, gradient accumulation and clipping, random states, going on from a
state. What is told here: which loss, when to stop, what of a model is worth saving (the parameters that are trained).
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from app.errors import UnlearningFailed
from app.methods import Hyperparameters
from app.reports.unlearning import LossPoint, Reading, StopReason
from worker.engine.muse.subject import Progress
from worker.engine.unlearning.objective import Losses, Objective
from worker.engine.unlearning.sure import HeldRows
from worker.engine.unlearning.texts import Draw, Draws
from worker.engine.unlearning.watch import Watch, decide, forgotten

RUNAWAY_STEPS: Final = 5
"""Training has run away once the retain loss was above log|V| nats per token, that of guessing evenly, in so many steps
one after the other. (A base without a retain loss cannot run away: nothing says what it should keep.)"""

_TRAINED, _KEPT = "trained.safetensors", "kept.safetensors"
_STATE: Final = "state-"


class Trained(NamedTuple):
    """How training ended; the model holds the state of step `steps`."""

    stopped: StopReason
    steps: int
    losses: list[LossPoint]
    readings: list[Reading]
    memory: dict[str, int]
    texts: int
    """Forget texts (pieces of them, where they were cut)."""


class _Diverged(Exception):
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


def train(
    model: PreTrainedModel,
    objective: Objective,
    chosen: Hyperparameters,
    *,
    work: Path,
    vocabulary: int,
    watch: Watch | None,
    held: HeldRows | None,
    progress: Progress,
    on_loss: Callable[[LossPoint], None],
) -> Trained:
    """Train what requires a gradient, in place, going on from the newest state in `work`.

    Raises:
        UnlearningFailed: `non_finite`, `runaway` or `utility_floor` where no good state but the original is left;
            `nothing_to_forget` where the stop rule calls the original forgotten.
    """
    steps = steps_planned(chosen, len(objective.forget))
    sizes = (chosen.batch_size, chosen.retain_batch_size or chosen.batch_size)
    draws = Draws(
        len(objective.forget), len(objective.retain), sizes, steps * chosen.gradient_accumulation, chosen.seed
    )
    trainer = _Unlearner(model, objective, chosen, draws, steps, work, vocabulary, watch, held, progress, on_loss)
    state = last_state(work)
    if state is None:
        trainer.begin()
    try:
        trainer.train(resume_from_checkpoint=None if state is None else str(state))
        reason = trainer.reason
        if not all(bool(torch.isfinite(parameter).all()) for parameter in trainer.trained.values()):
            reason = "non_finite"
    except _Diverged as diverged:
        reason = diverged.reason
    if reason in ("non_finite", "runaway", "utility_floor"):
        return trainer.ended(reason, trainer.restore(reason))
    return trainer.ended(reason, trainer.state.global_step)


class _Unlearner(Trainer):
    def __init__(
        self,
        model: PreTrainedModel,
        objective: Objective,
        chosen: Hyperparameters,
        draws: Draws,
        steps: int,
        work: Path,
        vocabulary: int,
        watch: Watch | None,
        held: HeldRows | None,
        progress: Progress,
        on_loss: Callable[[LossPoint], None],
    ) -> None:
        self.objective: Objective = objective
        self.chosen = chosen
        self.work = work
        self.watch = watch
        self.held = held
        self.progress = progress
        self.on_loss = on_loss
        self.limit = math.log(vocabulary)
        self.trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.kept: dict[str, Tensor] = {}
        self.kept_step = 0
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
            model=model, args=arguments, train_dataset=draws, data_collator=_first, callbacks=[_Steps(self)]
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = False  # or gradients would not be divided by the accumulation

    def begin(self) -> None:
        """What the stop rule reads of the original."""
        if self.watch is None or self.chosen.stop is None:
            return
        self.readings.append(self.watch.read(0, self.progress))
        if forgotten(self.readings[0], self.chosen.stop):
            raise UnlearningFailed(
                "nothing_to_forget",
                f"by the stop rule the original has nothing to forget ({self.readings[0].model_dump_json()}); take the"
                " checkpoint that was trained on the forget set, or another stop rule",
            )

    def ended(self, reason: StopReason, steps: int) -> Trained:
        """The account of training."""
        return Trained(reason, steps, self.losses, self.readings, self.memory, len(self.objective.forget))

    # -- losses

    def compute_loss(self, model: Any, inputs: dict[str, list[int]], *_: Any, **__: Any) -> Tensor:  # type: ignore[override]
        """One forward pass of the objective; stops at what is no number."""
        losses = self.objective.losses(model, Draw(**inputs))
        self._check(losses)
        return losses.total

    def _check(self, losses: Losses) -> None:
        forget, total = float(losses.forget), float(losses.total.detach())
        retain = None if losses.retain is None else float(losses.retain)
        if not math.isfinite(total):
            raise _Diverged("non_finite")
        step = self.state.global_step
        # These weights' own losses have just been seen to be sane; a state that is saved before is not known to be.
        due = self.watch is None and step > self.kept_step and step % self.chosen.checkpoint_every == 0
        if due and (retain is None or retain <= self.limit):
            self.keep(step)
        self.parts.append((total, forget, retain))

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        self.norm = float(norm)
        if not math.isfinite(self.norm):
            raise _Diverged("non_finite")
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

    def ran_away(self) -> bool:
        """Whether the last steps' retain losses were all those of guessing, or worse."""
        last = [point.retain for point in self.losses[-RUNAWAY_STEPS:]]
        return len(last) == RUNAWAY_STEPS and all(retain is not None and retain > self.limit for retain in last)

    # -- the last good state

    @torch.no_grad()
    def keep(self, step: int) -> None:
        """Remember the trained parameters as good."""
        self.kept = {name: parameter.to("cpu", copy=True) for name, parameter in self.trained.items()}
        self.kept_step = step
        self.memory["kept"] = sum(tensor.nbytes for tensor in self.kept.values())

    @torch.no_grad()
    def restore(self, reason: StopReason) -> int:
        """Go back to the last good state; its step."""
        if not self.kept:
            at = self.state.global_step
            detail = {
                "non_finite": f"training gave no finite numbers at step {at}",
                "runaway": f"the retain loss was above that of guessing in the {RUNAWAY_STEPS} steps up to {at}",
                "utility_floor": f"utility fell below the stop rule's floor by step {at}, at its first reading",
            }[str(reason)]
            raise UnlearningFailed(
                reason,
                f"{detail}, and no good state but the original is left; take a smaller learning rate or alpha"
                " larger, or read more often (stop.every, checkpoint_every)",
            )
        for name, parameter in self.trained.items():
            parameter.copy_(self.kept[name])
        return self.kept_step

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
        part = self.work / "part" / f"checkpoint-{self.state.global_step}"
        before = list(self.work.glob(f"{_STATE}*"))
        os.rename(part, self.work / f"{_STATE}{self.state.global_step}")
        for state in before:
            shutil.rmtree(state)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(str(output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: parameter.detach() for name, parameter in self.trained.items()}, folder / _TRAINED)
        if self.kept:
            save_file(self.kept, folder / _KEPT, metadata={"step": str(self.kept_step)})

    @torch.no_grad()
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        for name, value in load_file(folder / _TRAINED).items():
            self.trained[name].copy_(value)
        if (folder / _KEPT).exists():
            self.kept = load_file(folder / _KEPT)
            with safe_open(folder / _KEPT, "pt") as file:
                self.kept_step = int(file.metadata()["step"])

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

    def __init__(self, trainer: _Unlearner) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.remember()
        self._trainer.progress("train", state.global_step, state.max_steps)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self._trainer
        trainer.rate = kwargs["lr_scheduler"].get_last_lr()[0]  # before the schedule goes on
        if trainer.held is not None:
            trainer.held.restore()
        if "optimizer" not in trainer.memory:
            gradients = [parameter.grad for parameter in trainer.trained.values() if parameter.grad is not None]
            moments = [
                value
                for held in kwargs["optimizer"].state.values()
                for value in held.values()
                if isinstance(value, Tensor)
            ]
            trainer.memory["gradients"] = sum(tensor.nbytes for tensor in gradients)
            trainer.memory["optimizer"] = sum(tensor.nbytes for tensor in moments)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer, step = self._trainer, state.global_step
        point = trainer.point(step)
        trainer.losses.append(point)
        trainer.on_loss(point)
        trainer.progress("train", step, state.max_steps)
        if trainer.ran_away():
            raise _Diverged("runaway")
        rule = trainer.chosen.stop
        if trainer.watch is not None and rule is not None and (step % rule.every == 0 or step == state.max_steps):
            reading = trainer.watch.read(step, trainer.progress)
            trainer.readings.append(reading)
            reason = decide(reading, trainer.readings[0], rule)
            if reason != "utility_floor":
                trainer.keep(step)
            if reason is not None:
                trainer.reason = reason
                control.should_training_stop = True
                return
        control.should_save = step % trainer.chosen.checkpoint_every == 0 and step < state.max_steps


def _first(items: Sequence[Draw]) -> dict[str, list[int]]:
    return items[0]._asdict()


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
