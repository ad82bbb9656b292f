"""A remediation's outcome: the original, the first unlearned model and the new one, side by side."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from app import __version__, canonical
from app.catalog.frozen import Frozen
from app.catalog.metrics import METRIC_NAMES, METRICS, MetricId
from app.catalog.recipes import Recipe, describe
from app.evidence.evaluation import CheckpointInfo, ForgetSetInfo
from app.evidence.unlearning import StopReason, Unlearned
from app.judgement.figures import score, score_with_auc, whole_percent
from app.judgement.verdict import Outcome, PrecisionJudgement
from app.remediations import outcome
from app.reports.model import AuditReport
from app.reports.rendering.markdown import table

if TYPE_CHECKING:
    from app.database.models import Remediation, Trial

SCHEMA = "lethe-remediation-2"
HEADER = (
    "precision", "metric", "original", "first", "new", "reference",
    "kept by first", "kept by new", "first is", "new is",
)  # fmt: skip
EXPLANATION = (
    "Scores are x100. first: the unlearned model that the first audit judged; new: the one made here. kept: what the "
    "policy judges, relative to the original at the same precision, beyond the reference where there is one; for "
    "KnowMem retain it is the utility kept."
)


class Side(Frozen):
    """One metric of one of the two unlearned models."""

    score: float | None = Field(description="x100")
    auc: float | None = Field(default=None, description="PrivLeak's AUC.")
    kept: float | None = Field(description="Retention as it was judged, or the utility kept; a share.")
    outcome: Outcome | None = Field(description="Null for utility and where the metric does not count.")


class Compared(Frozen):
    """One metric at one precision."""

    metric: MetricId
    original: float | None
    reference: float | None
    first: Side
    new: Side


class ComparedPrecision(Frozen):
    """One precision of the plan."""

    precision: str
    first: Outcome
    new: Outcome
    metrics: list[Compared]


class TrialLine(Frozen):
    """One trial and its outcome."""

    recipe: Recipe
    outcome: str = Field(description="The verdict of its audit, or why it has none.")
    returned: bool


class TrainingSummary(Frozen):
    """How training went."""

    steps: int = Field(description="Optimiser steps in the new model.")
    steps_planned: int
    first: float | None = Field(description="The loss of the first recorded step.")
    last: float | None
    stopped: StopReason
    sentence: str
    resumed: int


class RemediationReport(Frozen):
    """Before and after."""

    schema_: str = Field(default=SCHEMA, alias="schema")
    lethe: str
    id: str
    name: str = Field(examples=["release 2026-03: sure npo_gdr"])
    created_at: datetime
    finished_at: datetime
    verdict_before: Outcome
    verdict: Outcome
    sentence: str
    recipe: Recipe
    training: TrainingSummary
    precisions: list[ComparedPrecision]
    trials: list[TrialLine]
    checkpoints: dict[str, CheckpointInfo] = Field(description="original, first, new, and retrained if there is one.")
    forget_set: ForgetSetInfo
    audits: dict[str, str] = Field(description="first, new: the audits' ids; their reports hold all the evidence.")
    policy_digest: str = Field(description="The same policy judged both.")
    parameters_total: int
    parameters_trained: int
    parameters_changed: int
    peak_memory: dict[str, int]

    def canonical(self) -> bytes:
        """RFC 8785 canonical JSON."""
        return canonical.dumps(self.model_dump(mode="json", by_alias=True))


def make(row: "Remediation", trials: Sequence["Trial"], before: AuditReport, after: AuditReport) -> RemediationReport:
    """The report of a finished remediation.

    Args:
        before: The report of the audit that led to it.
        after: The report of the whole audit of the model that it returns.
    """
    assert row.chosen is not None
    assert row.finished_at is not None
    result = Unlearned.model_validate(trials[row.chosen].result)
    earlier = {judged.precision: judged for judged in before.precisions}
    checkpoints = {"original": after.checkpoints["original"], "first": before.checkpoints["unlearned"]}
    checkpoints["new"] = after.checkpoints["unlearned"]
    if "retrained" in after.checkpoints:
        checkpoints["retrained"] = after.checkpoints["retrained"]
    return RemediationReport(
        lethe=__version__,
        id=row.id,
        name=row.name,
        created_at=row.created_at,
        finished_at=row.finished_at,
        verdict_before=before.verdict,
        verdict=after.verdict,
        sentence=row.sentence or "",
        recipe=result.recipe,
        training=_training(result),
        precisions=[_compare(earlier[judged.precision], judged) for judged in after.precisions],
        trials=[
            TrialLine(
                recipe=Recipe.model_validate(trial.recipe),
                outcome=outcome.outcome_of(trial),
                returned=trial.position == row.chosen,
            )
            for trial in trials
        ],
        checkpoints=checkpoints,
        forget_set=after.forget_set,
        audits={"first": before.audit.id or "", "new": after.audit.id or ""},
        policy_digest=after.policy_digest,
        parameters_total=result.parameters_total,
        parameters_trained=result.parameters_trained,
        parameters_changed=result.parameters_changed,
        peak_memory=result.peak_memory,
    )


def _training(result: Unlearned) -> TrainingSummary:
    return TrainingSummary(
        steps=result.steps,
        steps_planned=result.steps_planned,
        first=result.losses[0].loss if result.losses else None,
        last=result.losses[-1].loss if result.losses else None,
        stopped=result.stopped,
        sentence=outcome.ended(result),
        resumed=result.resumed,
    )


def _compare(first: PrecisionJudgement, new: PrecisionJudgement) -> ComparedPrecision:
    return ComparedPrecision(
        precision=new.precision,
        first=first.outcome,
        new=new.outcome,
        metrics=[
            Compared(
                metric=metric,
                original=_of(new, metric, "original") if _of(new, metric, "original") is not None
                else _of(first, metric, "original"),
                reference=_of(new, metric, "retrained"),
                first=_side(first, metric),
                new=_side(new, metric),
            )
            for metric in METRICS
            if _has(first, metric) or _has(new, metric)
        ],
    )  # fmt: skip


def _has(judged: PrecisionJudgement, metric: MetricId) -> bool:
    return (
        bool(judged.knowmem_retain) if metric == "knowmem_retain" else any(m.metric == metric for m in judged.metrics)
    )


def _of(judged: PrecisionJudgement, metric: MetricId, role: str) -> float | None:
    if metric == "knowmem_retain":
        return judged.knowmem_retain.get(role)
    field = {"original": "original", "unlearned": "unlearned", "retrained": "reference"}[role]
    return next((getattr(found, field) for found in judged.metrics if found.metric == metric), None)


def _side(judged: PrecisionJudgement, metric: MetricId) -> Side:
    score = _of(judged, metric, "unlearned")
    if metric == "knowmem_retain":
        return Side(score=score, kept=None if judged.utility is None else judged.utility.value, outcome=None)
    found = next((item for item in judged.metrics if item.metric == metric), None)
    return Side(
        score=score,
        auc=None if found is None else found.auc.get("unlearned"),
        kept=None if found is None or found.retained is None else found.retained.value,
        outcome=None if found is None else found.outcome,
    )


class Row(NamedTuple):
    """A line of the table, as text."""

    precision: str
    metric: str
    original: str = ""
    first: str = ""
    new: str = ""
    reference: str = ""
    kept_first: str = ""
    kept_new: str = ""
    first_is: str = ""
    new_is: str = ""


def rows(report: RemediationReport) -> Iterator[Row]:
    """The table: for each precision its metrics, and each model's outcome."""
    for at in report.precisions:
        for item in at.metrics:
            utility = item.metric == "knowmem_retain"
            yield Row(
                at.precision,
                METRIC_NAMES[item.metric],
                score(item.original),
                score_with_auc(item.first.score, item.first.auc),
                score_with_auc(item.new.score, item.new.auc),
                score(item.reference),
                whole_percent(item.first.kept),
                whole_percent(item.new.kept),
                "utility" if utility else _name(item.first.outcome),
                "utility" if utility else _name(item.new.outcome),
            )
        yield Row(at.precision, "all", first_is=_name(at.first).upper(), new_is=_name(at.new).upper())


def _name(outcome: Outcome | None) -> str:
    return "does not count" if outcome is None else outcome.replace("_", " ")


def markdown(report: RemediationReport) -> str:
    """The whole report, as CommonMark with tables."""
    training = report.training
    names = {"original": "original", "first": "first unlearned", "new": "new unlearned", "retrained": "retrained"}
    hyperparameters = [
        (name, value)
        for name, value in report.recipe.hyperparameters.model_dump(mode="json").items()
        if value is not None
    ]
    curve = (
        "" if training.first is None or training.last is None else f", loss {training.first:.4g} to {training.last:.4g}"
    )
    resumed = f" It was interrupted and resumed {training.resumed} times." if training.resumed else ""
    sections = (
        f"# Remediation {report.name}: {_name(report.verdict_before).upper()}, now {_name(report.verdict).upper()}\n\n"
        f"{report.sentence}\n\nRemediation {report.id}, finished {report.finished_at:%Y-%m-%d %H:%M:%S} UTC, Lethe"
        f" {report.lethe}. Audits: {report.audits['first']} before, {report.audits['new']} after, by the same policy"
        f" `{report.policy_digest}`.\n",
        "## Before and after\n\n" + table(HEADER, list(rows(report))) + f"\n{EXPLANATION}\n",
        "## Training\n\n"
        f"{training.steps:,} of {training.steps_planned:,} optimiser steps{curve}. {training.sentence}{resumed}\n\n"
        f"Of {report.parameters_total:,} parameters {report.parameters_trained:,} had optimiser state, and the stored"
        f" values of {report.parameters_changed:,} changed.\n",
        f"## Recipe: {report.recipe.method} over {report.recipe.loss}\n\n" + table(("what", "value"), hyperparameters),
        "## Trials\n\n"
        + table(
            ("trial", "recipe", "outcome", ""),
            [
                (number + 1, describe(line.recipe), line.outcome, "returned" if line.returned else "")
                for number, line in enumerate(report.trials)
            ],
        ),
        "## Checkpoints\n\n"
        + table(
            ("what", "digest", "where it was"),
            [
                *((names[role], f"`{info.digest}`", info.uri) for role, info in report.checkpoints.items()),
                ("forget set", f"`{report.forget_set.digest}`", ""),
            ],
        ),
    )
    return "\n".join(sections)
