"""An evaluation that gives every item a score of one, and a diagnosis that says that something moved."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from app.checkpoints.format.digests import NOTHING_EXPECTED, Expected, check_digest, digest
from app.evidence import diagnosis as diagnoses
from app.evidence import evaluation as schemas
from app.forget_sets.bundle import Bundle


def evaluate(
    checkpoint: Path,
    precision: str,
    bundle: Bundle,
    *,
    metrics: Sequence[str] = (),
    device: str | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None],
    calibration_file: Path | None = None,
    uri: str | None = None,
    interface: Path | None = None,
    base: Path | None = None,
    expected: Expected = NOTHING_EXPECTED,
    pause: float | None = None,
) -> schemas.Evaluation:
    """A stand-in for the engine: takes its time in ten steps, then returns a score of one for each item.

    What else it does is said by a file `behaviour` in the checkpoint's folder: `hang` (no progress any more), `error`.
    """
    check_digest(checkpoint, digest(checkpoint), expected.checkpoint)
    if base is not None:
        check_digest(base, digest(base), expected.base)
    behaviour = checkpoint / "behaviour"
    what = behaviour.read_text() if behaviour.exists() else ""
    pause = float(os.environ.get("LETHE_TEST_PAUSE", "0")) if pause is None else pause
    for step in range(10):
        progress("knowmem_forget", step, 10)
        time.sleep(pause)
        if what == "hang":
            time.sleep(3600)
        if what == "error":
            raise ValueError(f"cannot read {bundle.forget_qa[0].question!r}")
    progress("knowmem_forget", 10, 10)
    measured: dict[str, Any] = {"knowmem_forget": schemas.GenerationScores(scores=[1.0])}
    return schemas.Evaluation(
        checkpoint=schemas.CheckpointInfo(
            uri=str(checkpoint), digest=digest(checkpoint), architecture="None", parameters=1, dtype="F32"
        ),
        precision=schemas.PrecisionInfo(name=precision, method="full", bits=None, library="lethe", version="0"),
        forget_set=bundle.info(),
        engine=schemas.EngineInfo(
            lethe="0", python="3", torch="0", transformers="0", device="cpu", dtype="float32", seed=seed, settings={}
        ),
        census=None,
        seconds={},
        **measured,
    )


def diagnose(
    original: Path,
    unlearned: Path,
    precisions: Sequence[str],
    progress: Callable[[str, int, int], None],
) -> diagnoses.Diagnosis:
    """A stand-in for the engine's diagnosis: takes its time in ten steps, then says that something moved."""
    for step in range(11):
        progress("weights", step, 10)
        time.sleep(float(os.environ.get("LETHE_TEST_PAUSE", "0")))
    infos = [
        schemas.CheckpointInfo(uri=str(path), digest=digest(path), architecture="None", parameters=1, dtype="F32")
        for path in (original, unlearned)
    ]
    whole = diagnoses.Part(weights=1, changed=1, update=1, relative_update=1, non_finite=0, roundings=[])
    return diagnoses.Diagnosis(
        schema="lethe-diagnosis-1",
        lethe="0",
        original=infos[0],
        unlearned=infos[1],
        precisions=list(precisions),
        skipped={},
        overall=whole,
        modules=[],
        left_out={},
        identical=False,
    )
