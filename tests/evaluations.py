"""Evaluations made up from scores, for tests of what follows from them."""

from datetime import UTC, datetime

import numpy as np

from app.reports.report import AuditInfo
from app.reports.schemas import (
    CheckpointInfo,
    EngineInfo,
    Evaluation,
    ForgetSetInfo,
    GenerationScores,
    PrecisionInfo,
    PrivLeakScores,
    TextStatistics,
)

AUDIT = AuditInfo(
    id=None,
    name="a pair",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    finished_at=datetime(2026, 1, 1, 1, tzinfo=UTC),
)


def statistics(values):
    return TextStatistics(
        tokens=[100] * len(values), loss=list(values), zlib_ratio=list(values), min_k={"40": list(values)}
    )


def evaluation(verbmem=None, forget=None, retain=None, items=100, membership=None, precision="full"):
    """An evaluation whose items score alike, or as given."""

    def scores(value):
        if value is None:
            return None
        return GenerationScores(scores=list(value) if np.ndim(value) else [value / 100] * items)

    return Evaluation(
        checkpoint=CheckpointInfo(uri="/m", digest="sha256:0", architecture="L", parameters=1, dtype="F32"),
        precision=PrecisionInfo(name=precision, method="rtn", bits=4, library="lethe", version="0"),
        forget_set=ForgetSetInfo(digest="sha256:1", counts={}, unavailable={}),
        engine=EngineInfo(
            lethe="0", python="3", torch="2", transformers="5", device="cpu", dtype="float32", seed=0, settings={}
        ),
        census=None,
        verbmem=scores(verbmem),
        knowmem_forget=scores(forget),
        knowmem_retain=scores(retain),
        privleak=None
        if membership is None
        else PrivLeakScores(forget=statistics(membership[0]), holdout=statistics(membership[1])),
        seconds={},
    )
