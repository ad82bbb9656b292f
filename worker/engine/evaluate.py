"""One checkpoint at one precision on one forget set: the engine's main entry point."""

import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

from app import __version__
from app.catalog.frozen import Scalar
from app.catalog.metrics import DEFAULT_METRICS
from app.catalog.plans import check_metrics
from app.catalog.precisions import FULL
from app.checkpoints.format import digests
from app.checkpoints.format.digests import NOTHING_EXPECTED, Expected, Identity
from app.checkpoints.format.files import CheckpointFiles, inspect
from app.checkpoints.pair import check_structure
from app.errors import EvaluationFailed
from app.evidence.artifacts import LIBRARIES
from app.evidence.evaluation import Census, CheckpointInfo, EngineInfo, Evaluation
from app.forget_sets.bundle import Bundle
from worker.engine import precisions as registry
from worker.engine.artifacts import shipped
from worker.engine.checkpoint import open_checkpoint
from worker.engine.muse import suite
from worker.engine.muse.subject import Progress, Subject
from worker.engine.quantizers import calibration

TOKEN_BUDGET = {"cuda": 32768, "cpu": 8192}
"""The most tokens that go through a model at once, by kind of device."""


def evaluate(
    checkpoint: Path,
    precision: str,
    bundle: Bundle,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    device: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    token_budget: int | None = None,
    uri: str | None = None,
    calibration_file: Path | None = None,
    interface: Path | None = None,
    base: Path | None = None,
    expected: Expected = NOTHING_EXPECTED,
) -> Evaluation:
    """Open a checkpoint, apply a precision, prove that it was applied, and run MUSE's metrics.

    The checkpoint is read again every time: a precision changes the model in place, and its numbers must not depend on
    what ran before. (The operating system's page cache makes the second reading cheap.)

    Args:
        checkpoint: A directory with config, safetensors weights and tokenizer.
        precision: A name from `app.catalog.precisions`, or an artifact's from `app.evidence.artifacts`.
        bundle: The forget set. Metrics that cannot be measured on it are None.
        metrics: Which metrics to run, of `app.catalog.metrics`; hyphens work as underscores.
        device: A torch device; by default the first GPU, else the CPU.
        seed: Set after quantizing, because quantizers reseed too. Greedy decoding draws nothing; sampled metrics have
            their own generators, made from this seed.
        progress: Called with (stage, done, total): "checkpoint", "precision", then each metric's id; at least once per
            batch and at every generated token, so it must be cheap. Raising from it (`EvaluationCancelled`) stops.
        token_budget: The most tokens in a batch, including padding; by default `TOKEN_BUDGET`.
        uri: What the checkpoint is called in the result; by default its path.
        calibration_file: The operator's texts, for precisions that end in `@file`.
        interface: The original's directory: its tokenizer, end tokens, window and attention serve every role of an
            audit. Without it, the checkpoint's own.
        base: For an artifact: the checkpoint that it is said to be made from. Without it, nothing shows that it was.
        expected: The digests that the read files must have.

    Raises:
        InvalidRequest: `unknown_precision`, `unknown_metric`; `pair_mismatch` of an artifact and its base.
        CheckpointRefused: What cannot be opened; `checkpoint_changed` for what is not as expected.
        EvaluationFailed: `not_quantized`, `artifact_not_of_pair`, `precision_unavailable`, `out_of_memory`.
        EvaluationCancelled: And whatever else `progress` raises.
    """
    is_artifact = precision in LIBRARIES
    chosen = FULL if is_artifact else registry.parse(precision)
    measured = check_metrics(metrics)
    report: Progress = progress or (lambda stage, done, total: None)
    seconds: dict[str, float] = {}

    started = time.monotonic()
    report("checkpoint", 0, 1)
    if is_artifact:
        shipped.check_library(precision)
    spoken = None if interface is None else inspect(interface)
    if spoken is not None:
        digests.check_digest(spoken.path, digests.interface(spoken), expected.interface)
    made_from = None if base is None else shipped.Base(inspect(base))
    opened = open_checkpoint(
        checkpoint,
        device,
        quantized=is_artifact,
        interface=spoken,
        expected=expected.checkpoint,
        progress=report,
    )
    if made_from is not None:
        check_structure(made_from.files, opened.files)
    model = opened.model
    seconds["checkpoint"] = time.monotonic() - started

    started = time.monotonic()
    context = getattr(model.config, "max_position_embeddings", None) or calibration.LENGTH
    texts = calibration.draw(chosen, opened.tokenizer, bundle, file=calibration_file, seed=seed, context=int(context))

    def count(done: int, total: int) -> None:
        report("precision", done, total)

    census: Census | None
    try:
        if is_artifact:
            described, census = shipped.hold(opened, precision, count, made_from)
            if made_from is not None:
                digests.check_digest(made_from.files.path, made_from.digest, expected.base)
        else:
            census = registry.apply(model, chosen, count, calibration=texts)
            described = registry.describe(chosen, texts)
    except torch.OutOfMemoryError as error:
        raise EvaluationFailed(
            "out_of_memory", f"{precision} does not fit into the memory of {model.device}"
        ) from error
    seconds["precision"] = time.monotonic() - started

    transformers.set_seed(seed)
    budget = token_budget or TOKEN_BUDGET.get(model.device.type, TOKEN_BUDGET["cpu"])
    scores = suite.run(Subject(model, opened.tokenizer, budget), bundle, measured, report, seed)
    return Evaluation(
        checkpoint=checkpoint_info(opened.files, opened.identity, uri),
        precision=described,
        forget_set=bundle.info(),
        engine=engine_info(model, seed, {"token_budget": budget, **scores.settings}),
        interface=digests.interface(spoken or opened.files),
        differences=dict(opened.differences),
        census=census,
        seconds=seconds | scores.seconds,
        **scores.scores,
    )


def checkpoint_info(files: CheckpointFiles, identity: Identity, uri: str | None = None) -> CheckpointInfo:
    """A checkpoint as a result records it; its URI is its path unless another is given."""
    return CheckpointInfo(
        uri=uri or str(files.path),
        digest=identity.digest,
        tensors=identity.tensors,
        architecture=files.architecture,
        parameters=files.parameters,
        dtype=files.dtype,
    )


def engine_info(model: PreTrainedModel, seed: int, settings: Mapping[str, Scalar]) -> EngineInfo:
    """What ran a model, as a result records it."""
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
