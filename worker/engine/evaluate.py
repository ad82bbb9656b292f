"""One checkpoint at one precision on one forget set: the engine's main entry point."""

import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

from app import __version__
from app.artifacts import LIBRARIES
from app.checkpoints.files import CheckpointFiles, check_artifact, digest, inspect
from app.errors import EvaluationFailed, InvalidRequest
from app.forget_sets.bundle import Bundle
from app.precisions import FULL
from app.reports.schemas import METRICS, Census, CheckpointInfo, EngineInfo, Evaluation, MetricId, Scalar
from worker.engine.checkpoint import open_checkpoint
from worker.engine.muse import suite
from worker.engine.muse.subject import Progress, Subject
from worker.engine.precision import calibration, registry, shipped

TOKEN_BUDGET = {"cuda": 32768, "cpu": 8192}
"""Most tokens that go through a model at once, by kind of device."""


def evaluate(
    checkpoint: Path,
    precision: str,
    bundle: Bundle,
    *,
    metrics: Sequence[MetricId] = METRICS,
    device: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    token_budget: int | None = None,
    digest_cache: Path | None = None,
    uri: str | None = None,
    calibration_file: Path | None = None,
    base: Path | None = None,
) -> Evaluation:
    """Open a checkpoint, hold it at a precision, prove that, and run MUSE's metrics.

    The checkpoint is read anew every time: a precision changes the model in place, and its numbers must not depend on
    what ran before. (The operating system's page cache makes the second reading cheap.)

    Args:
        checkpoint: A directory with config, safetensors weights and tokenizer.
        precision: A name that `app.precisions` knows, or one that `app.artifacts` holds artifacts at.
        bundle: The forget set. Metrics that it cannot give are left None.
        metrics: Which metrics to run.
        device: A torch device; by default the first GPU, else the CPU.
        seed: Set after quantizing, because quantizers reseed too. Greedy decoding draws nothing; it guards the rest.
        progress: Called with (stage, done, total): "checkpoint", "precision", then each metric's id; at least once per
            batch and at every generated token, so it must be cheap. Raising from it (`EvaluationCancelled`) stops.
        token_budget: Most tokens in a batch, padding included; by default `TOKEN_BUDGET`.
        digest_cache: See `app.checkpoints.files.digest`.
        uri: What the checkpoint is called in the result; by default its path.
        calibration_file: The operator's texts, for precisions that end in `@file`.
        base: For an artifact: the checkpoint that it is said to be of. Without it, nothing shows that it is.

    Raises:
        InvalidRequest: `unknown_precision`, `unknown_metric`; `pair_mismatch` of an artifact and its base.
        CheckpointRefused: What cannot be opened.
        EvaluationFailed: `not_quantized`, `artifact_not_of_pair`, `precision_unavailable`, `out_of_memory`.
        EvaluationCancelled: Whatever `progress` raises goes through.
    """
    is_artifact = precision in LIBRARIES
    chosen = FULL if is_artifact else registry.parse(precision)
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown:
        raise InvalidRequest("unknown_metric", f"There is no metric {unknown[0]!r}. Known: {', '.join(METRICS)}")
    report: Progress = progress or (lambda stage, done, total: None)
    seconds: dict[str, float] = {}

    started = time.monotonic()
    report("checkpoint", 0, 1)
    checksum = digest(checkpoint, digest_cache)
    if is_artifact:
        shipped.check_library(precision)
    made_from = None
    if base is not None:
        made_from = shipped.Base(inspect(base), digest(base, digest_cache))
        check_artifact(made_from.files, inspect(checkpoint, quantized=True))
    opened = open_checkpoint(checkpoint, device, quantized=is_artifact)
    model = opened.model
    report("checkpoint", 1, 1)
    seconds["checkpoint"] = time.monotonic() - started

    started = time.monotonic()
    context = getattr(model.config, "max_position_embeddings", None) or calibration.LENGTH
    texts = calibration.draw(chosen, opened.tokenizer, bundle, file=calibration_file, seed=seed, context=int(context))

    def count(done: int, total: int) -> None:
        report("precision", done, total)

    census: Census | None
    try:
        if is_artifact:
            held, census = shipped.hold(opened, precision, count, made_from)
        else:
            census = registry.apply(model, chosen, count, calibration=texts)
            held = registry.describe(chosen, texts)
    except torch.OutOfMemoryError as error:
        raise EvaluationFailed(
            "out_of_memory", f"{precision} does not fit into the memory of {model.device}"
        ) from error
    seconds["precision"] = time.monotonic() - started

    transformers.set_seed(seed)
    budget = token_budget or TOKEN_BUDGET.get(model.device.type, TOKEN_BUDGET["cpu"])
    scores = suite.run(Subject(model, opened.tokenizer, budget), bundle, metrics, report)
    return Evaluation(
        checkpoint=checkpoint_info(opened.files, checksum, uri),
        precision=held,
        forget_set=bundle.info(),
        engine=engine_info(model, seed, {"token_budget": budget}),
        census=census,
        verbmem=scores.verbmem,
        knowmem_forget=scores.knowmem_forget,
        knowmem_retain=scores.knowmem_retain,
        privleak=scores.privleak,
        seconds=seconds | scores.seconds,
    )


def checkpoint_info(files: CheckpointFiles, checksum: str, uri: str | None) -> CheckpointInfo:
    """What a checkpoint is, for a result's record; its uri is its path unless it is called something else."""
    return CheckpointInfo(
        uri=uri or str(files.path),
        digest=checksum,
        architecture=files.architecture,
        parameters=files.parameters,
        dtype=files.dtype,
    )


def engine_info(model: PreTrainedModel, seed: int, settings: Mapping[str, Scalar]) -> EngineInfo:
    """What ran a model, for a result's record."""
    return EngineInfo(
        lethe=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        device=torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        seed=seed,
        settings={**settings, "attention": str(model.config._attn_implementation)},
    )
