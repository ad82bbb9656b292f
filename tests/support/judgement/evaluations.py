"""Evaluations made up from scores, for tests of what follows from them."""

from datetime import UTC, datetime

import numpy as np

from app.evidence.diagnosis import Diagnosis, ModulePart, Part
from app.evidence.evaluation import (
    CheckpointInfo,
    EngineInfo,
    Evaluation,
    ForgetSetInfo,
    GenerationScores,
    PrecisionInfo,
    PrivLeakScores,
    TextStatistics,
)
from app.reports.model import AuditInfo

AUDIT = AuditInfo(
    id=None,
    name="a pair",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    finished_at=datetime(2026, 1, 1, 1, tzinfo=UTC),
)


TEXTS = 40
MEMBER = np.linspace(1, 2, TEXTS), np.linspace(5, 6, TEXTS)
"""What a model that was trained on the forget set says of its texts and of the holdout's: AUC 0."""
OUTSIDER = np.linspace(5, 6, TEXTS), np.linspace(5, 6, TEXTS)
"""What a model that never saw either says: AUC 0.5."""


def statistics(values):
    return TextStatistics(
        tokens=[100] * len(values), loss=list(values), zlib_ratio=list(values), min_k={"40": list(values)}
    )


def knowing(made, membership):
    """The evaluation with these statistics of the forget set's texts and the holdout's."""
    return made.model_copy(
        update={"privleak": PrivLeakScores(forget=statistics(membership[0]), holdout=statistics(membership[1]))}
    )


def evaluation(
    verbmem=None, forget=None, retain=None, items=100, membership=None, precision="full", duplicates=None, tensors=None
):
    """An evaluation whose items score alike, or as given."""

    def scores(value):
        if value is None:
            return None
        return GenerationScores(scores=list(value) if np.ndim(value) else [value / 100] * items)

    made = Evaluation(
        checkpoint=CheckpointInfo(
            uri="/m", digest="sha256:0", architecture="L", parameters=1, dtype="F32", tensors=tensors
        ),
        precision=PrecisionInfo(name=precision, method="rtn", bits=4, library="lethe", version="0"),
        forget_set=ForgetSetInfo(digest="sha256:1", counts={}, unavailable={}, duplicates=duplicates or {}),
        engine=EngineInfo(
            lethe="0", python="3", torch="2", transformers="5", device="cpu", dtype="float32", seed=0, settings={}
        ),
        census=None,
        verbmem=scores(verbmem),
        knowmem_forget=scores(forget),
        knowmem_retain=scores(retain),
        seconds={},
    )
    return made if membership is None else knowing(made, membership)


def diagnosis(*, identical=False, changed=0.5, others=()):
    """A diagnosis of a pair whose weights differ, or as given."""
    info = evaluation().checkpoint
    update = float(changed > 0)
    whole = Part(weights=8, changed=changed, update=update, relative_update=update, non_finite=0, roundings=[])
    modules = [ModulePart(module="layers.0.up_proj", shape=[2, 4], **whole.model_dump())]
    return Diagnosis(
        schema="lethe-diagnosis-1", lethe="0", original=info, unlearned=info, precisions=["rtn-int4"], skipped={},
        overall=whole, modules=modules, left_out={"lm_head": 8}, others=list(others), identical=identical,
    )  # fmt: skip
