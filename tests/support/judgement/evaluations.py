"""Evaluations made up from scores, for tests of what follows from them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from app.evidence.diagnosis import Diagnosis, ModulePart, OtherPart, Part
from app.evidence.evaluation import (
    ROLES,
    CheckpointInfo,
    EngineInfo,
    Evaluation,
    ForgetSetInfo,
    GenerationScores,
    PrecisionInfo,
    PrivLeakScores,
    Role,
    TextStatistics,
)
from app.judgement.verdict import Failure
from app.reports.model import AuditInfo

AUDIT = AuditInfo(
    id=None,
    name="a pair",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    finished_at=datetime(2026, 1, 1, 1, tzinfo=UTC),
)

_T = TypeVar("_T")
PAIR = ROLES[:2]
Cells = dict[tuple[Role, str], Evaluation | Failure]
"""(role, precision) -> what came of it."""
Membership = Sequence[npt.ArrayLike]
"""The statistics of the forget set's texts and of the holdout's."""
TEXTS = 40
MEMBER = np.linspace(1, 2, TEXTS), np.linspace(5, 6, TEXTS)
"""What a model that was trained on the forget set says of its texts and of the holdout's: AUC 0."""
OUTSIDER = np.linspace(5, 6, TEXTS), np.linspace(5, 6, TEXTS)
"""What a model that never saw either says: AUC 0.5."""


def statistics(values: npt.ArrayLike) -> TextStatistics:
    found = np.asarray(values, dtype=float).tolist()
    return TextStatistics(tokens=[100] * len(found), loss=found, zlib_ratio=found, min_k={"40": found})


def knowing(made: Evaluation, membership: Membership) -> Evaluation:
    """The evaluation with these statistics of the forget set's texts and the holdout's."""
    return made.model_copy(
        update={"privleak": PrivLeakScores(forget=statistics(membership[0]), holdout=statistics(membership[1]))}
    )


def evaluation(
    verbmem: npt.ArrayLike | None = None,
    forget: npt.ArrayLike | None = None,
    retain: npt.ArrayLike | None = None,
    items: int = 100,
    membership: Membership | None = None,
    precision: str = "full",
    duplicates: dict[str, list[int]] | None = None,
    tensors: str | None = None,
) -> Evaluation:
    """An evaluation whose items score alike, or as given."""

    def scores(value: npt.ArrayLike | None) -> GenerationScores | None:
        if value is None:
            return None
        given = np.asarray(value, dtype=float)
        return GenerationScores(scores=given.tolist() if given.ndim else [float(given) / 100] * items)

    measured: dict[str, Any] = {
        "verbmem": scores(verbmem),
        "knowmem_forget": scores(forget),
        "knowmem_retain": scores(retain),
    }
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
        seconds={},
        **measured,
    )
    return made if membership is None else knowing(made, membership)


def known(value: _T | None) -> _T:
    """The value; the test fails where there is none."""
    assert value is not None
    return value


def scores_of(found: Evaluation | None, metric: str) -> GenerationScores:
    """What was measured of a metric whose items are scored one by one; the test fails where nothing was."""
    return known(known(found).generation(metric))


def membership_of(found: Evaluation | None) -> PrivLeakScores:
    """What PrivLeak is made of; the test fails where it was not measured."""
    return known(known(found).membership)


def diagnosis(*, identical: bool | None = False, changed: float = 0.5, others: Sequence[OtherPart] = ()) -> Diagnosis:
    """A diagnosis of a pair whose weights differ, or as given."""
    info = evaluation().checkpoint
    update = float(changed > 0)
    whole = Part(weights=8, changed=changed, update=update, relative_update=update, non_finite=0, roundings=[])
    modules = [ModulePart(module="layers.0.up_proj", shape=[2, 4], **whole.model_dump())]
    return Diagnosis(
        schema="lethe-diagnosis-1", lethe="0", original=info, unlearned=info, precisions=["rtn-int4"], skipped={},
        overall=whole, modules=modules, left_out={"lm_head": 8}, others=list(others), identical=identical,
    )  # fmt: skip
