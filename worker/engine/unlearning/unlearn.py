"""Make a model forget by a recipe: the engine's entry point for unlearning."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from app import __version__
from app.catalog.recipes import Hyperparameters, Recipe, check_texts
from app.checkpoints.format.content import RECORD
from app.checkpoints.format.digests import digest
from app.errors import InvalidRequest, UnlearningFailed
from app.evidence.unlearning import LossPoint, Unlearned
from app.forget_sets.bundle import Bundle
from app.reports.rendering.model_card import model_card
from worker.engine.checkpoint import Opened, compute_dtype, open_checkpoint, pick_device
from worker.engine.evaluate import TOKEN_BUDGET, checkpoint_info, engine_info
from worker.engine.inference.subject import Progress, Subject
from worker.engine.unlearning import write
from worker.engine.unlearning.objective import Objective, reference_log_probs
from worker.engine.unlearning.stop_rule import StopReader
from worker.engine.unlearning.texts import Example, cut
from worker.engine.unlearning.train import Trained, train
from worker.engine.unlearning.trainable import COPIES_TRAINED, Trainable, changes, make_trainable
from worker.engine.unlearning.trainer import Training, steps_planned
from worker.engine.unlearning.work import claim

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def unlearn(
    original: Path,
    out: Path,
    bundle: Bundle,
    recipe: Recipe,
    *,
    work: Path | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    on_loss: Callable[[LossPoint], None] | None = None,
    expected: str | None = None,
    uri: str | None = None,
) -> Unlearned:
    """Unlearn `raw/forget` of a bundle from a checkpoint, keeping `raw/retain` where the recipe's loss does.

    Writes a checkpoint with the original's tokenizer, config and dtype, with `README.md` (model card) and
    `unlearning.json` (the record that is returned). The original's dropout is off throughout; the adapters' is not.

    Args:
        original: A directory with config, safetensors weights and tokenizer.
        out: A directory that does not exist or is empty; it appears whole or not at all.
        bundle: The forget set.
        recipe: See `app.catalog.recipes`.
        work: A directory for states to go on from. If it holds one of this very recipe, original and forget set,
            training goes on from there; on the CPU the result is the same to the last bit.
        device: A torch device; by default the GPU (all of them, layer by layer, if there are several), else the CPU.
        progress: Called with (stage, done, total): checkpoint, reference, saliency, stop_rule, train, save. May raise.
        on_loss: Called after every optimiser step.
        expected: The digest that the original must have.
        uri: What the original is called in the record; by default its path.

    Raises:
        InvalidRequest: `forget_set_incomplete`, `state_mismatch`, `invalid_request` (out, work, target modules).
        CheckpointRefused: What cannot be opened, or could not be written again.
        UnlearningFailed: `out_of_memory`, and what `train` and the method raise.
    """
    check_texts(recipe, bundle.info().counts)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidRequest("invalid_request", f"{out} is there already; name a directory that is new or empty")
    if work is not None and work.resolve().is_relative_to(out.resolve()):
        # It would fill the place that the result is moved to in the end.
        raise InvalidRequest("invalid_request", f"the states' directory {work} lies in {out}; take one elsewhere")
    report: Progress = progress or (lambda stage, done, total: None)
    chosen = recipe.hyperparameters
    seconds: dict[str, float] = {}
    try:
        with ExitStack() as stack:
            folder = work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lethe-unlearn-")))
            with _timed("checkpoint", seconds):
                report("checkpoint", 0, 1)
                opened = _open(original, device, chosen, expected)
                places = write.stored_names(opened.model, opened.files)
                report("checkpoint", 1, 1)
            facts = {
                "recipe": recipe.model_dump_json(),
                "original": opened.identity.digest,
                "forget set": bundle.digest,
                "dtype": str(opened.model.dtype),
                "device": opened.model.device.type,
                "version": __version__,
            }
            resumed = claim(folder, facts)
            trainable, trained = _train(
                opened, bundle, recipe, folder, report, on_loss or (lambda point: None), seconds
            )
            report("save", 0, 1)
            began = time.monotonic()
            part = Path(stack.enter_context(_part(out)))
            changed = write.write(opened.files, part, changes(trainable, places))
            record = Unlearned(
                recipe=recipe,
                original=checkpoint_info(opened.files, opened.identity, uri),
                forget_set=bundle.info(),
                engine=engine_info(opened.model, chosen.seed, {"token_budget": _budget(opened.model)}),
                digest=digest(part),
                stopped=trained.stopped,
                steps=trained.steps,
                steps_planned=steps_planned(chosen, trained.texts),
                resumed=resumed,
                losses=trained.losses,
                readings=trained.readings,
                saliency=trainable.saliency,
                parameters_total=opened.files.parameters,
                parameters_trained=sum(parameter.numel() for parameter in trainable.parameters.values()),
                parameters_changed=changed,
                peak_memory=_memory(opened.model, recipe, trainable, trained),
                seconds=seconds | {"save": time.monotonic() - began},
            )
            (part / RECORD).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
            (part / "README.md").write_text(model_card(record), encoding="utf-8")
            os.rename(part, out)
            report("save", 1, 1)
            return record
    except torch.OutOfMemoryError as error:
        raise UnlearningFailed(
            "out_of_memory",
            "unlearning does not fit into the GPU's memory; take a smaller batch_size (and more gradient_accumulation),"
            " a smaller max_length, or sure or lora, which train fewer parameters",
        ) from error


def _open(original: Path, device: str | None, chosen: Hyperparameters, expected: str | None) -> Opened:
    place = pick_device(device)
    dtype = _DTYPES.get(chosen.dtype, compute_dtype(place))
    spread = device is None and torch.cuda.device_count() > 1
    opened = open_checkpoint(original, device, dtype, spread=spread, expected=expected)
    model = opened.model
    # Noise would make log p_o another number at every step.
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010 - no declared attribute of a module
    if chosen.gradient_checkpointing or (chosen.gradient_checkpointing is None and place.type == "cuda"):
        model.gradient_checkpointing_enable({"use_reentrant": False})
        # Where the first layers are frozen, nothing before the first adapter would ask for a gradient.
        model.enable_input_require_grads()  # type: ignore[no-untyped-call]
    return opened


def _train(
    opened: Opened,
    bundle: Bundle,
    recipe: Recipe,
    work: Path,
    progress: Progress,
    on_loss: Callable[[LossPoint], None],
    seconds: dict[str, float],
) -> tuple[Trainable, Trained]:
    model, chosen = opened.model, recipe.hyperparameters
    transformers.set_seed(chosen.seed)
    subject = Subject(model, opened.tokenizer, _budget(model))
    objective = Objective(
        loss=recipe.loss,
        alpha=chosen.alpha,
        beta=chosen.beta,
        npo_ratio=chosen.npo_ratio,
        forget=_texts(subject, bundle, "raw/forget", chosen),
        retain=_texts(subject, bundle, "raw/retain", chosen) if recipe.retains else [],
        padding=subject.padding_id,
    )
    if recipe.loss.startswith("npo"):
        with _timed("reference", seconds):
            reference = reference_log_probs(subject, objective.forget, progress)
        objective = replace(objective, reference=reference)
    model.train()
    with _timed("saliency", seconds):
        trainable = make_trainable(model, recipe, objective, work, progress)
    if recipe.loss.endswith("_klr"):
        originals = {name: parameter.detach().clone() for name, parameter in trainable.parameters.items()}
        objective = replace(objective, originals=originals)
    with _timed("train", seconds):
        training = Training(
            objective=objective,
            chosen=chosen,
            work=work,
            vocabulary=model.config.get_text_config(decoder=True).vocab_size,
            stop_reader=StopReader(subject, bundle) if chosen.stop else None,
            frozen_rows=trainable.frozen_rows,
            progress=progress,
            on_loss=on_loss,
        )
        trained = train(model, training)
    return trainable, trained


def _texts(subject: Subject, bundle: Bundle, name: str, chosen: Hyperparameters) -> list[Example]:
    examples = cut(subject, [str(text) for text in bundle.items(name)], chosen.max_length)
    if not examples:
        raise InvalidRequest("forget_set_incomplete", f"no text of {name}.json is longer than one token")
    return examples


def _budget(model: PreTrainedModel) -> int:
    return TOKEN_BUDGET.get(model.device.type, TOKEN_BUDGET["cpu"])


def _memory(model: PreTrainedModel, recipe: Recipe, trainable: Trainable, trained: Trained) -> dict[str, int]:
    """Bytes. `training` is what parameters cost while training, activations left out, `full_fine_tuning` what the same
    would be if every parameter of the model were trained; the peaks are measured, activations and all."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    copies = sum(parameter.nbytes for parameter in trainable.parameters.values())
    found = {
        "weights": weights,
        **trained.memory,
        "originals": copies if recipe.loss.endswith("_klr") else 0,
        "frozen_rows": trainable.frozen_rows.bytes if trainable.frozen_rows else 0,
        "saliency": trainable.saliency_bytes,
    }
    training = sum(found[key] for key in ("weights", "gradients", "optimizer", "originals", "frozen_rows"))
    found["training"] = max(training, weights + found["saliency"])
    found["full_fine_tuning"] = weights * (1 + COPIES_TRAINED + recipe.loss.endswith("_klr"))
    if model.device.type == "cuda":
        found["peak_cuda"] = sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
    found["peak_process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return found


@contextmanager
def _timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[stage] = time.monotonic() - began


@contextmanager
def _part(out: Path) -> Iterator[Path]:
    """A folder beside `out`, gone at the end unless it was renamed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}.part-", dir=out.parent))
    try:
        # mkdtemp made it for its owner alone.
        part.chmod(0o755)
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)
