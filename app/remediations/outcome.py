"""How a remediation ended, in words."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from app.catalog.metrics import METRIC_NAMES
from app.catalog.recipes import Recipe, describe
from app.evidence.unlearning import Unlearned
from app.judgement.figures import whole_percent
from app.remediations import ranking
from app.reports.model import VERDICT_SENTENCES, AuditReport
from app.reports.rendering.model_card import STOPPED

if TYPE_CHECKING:
    from app.database.models import Remediation, Trial


def ended(result: Unlearned) -> str:
    """Why training ended, and what to keep in mind when reading the scores."""
    watched = (
        " Every second item of the forget set decided when to stop; its scores should be read with this in mind."
        if result.readings
        else ""
    )
    return f"Training ended: {STOPPED[result.stopped]}.{watched}"


def outcome_of(trial: "Trial") -> str:
    """A trial's outcome: its verdict, or why it has none."""
    for audit in (trial.audit, trial.screening):
        if audit is not None:
            return str(audit.verdict or audit.state).replace("_", " ")
    return f"failed ({trial.error_code})" if trial.error_code else str(trial.state)


def ending(row: "Remediation", trials: Sequence["Trial"], best: "Trial", report: AuditReport) -> str:
    """Which model is returned and why, and what its audit says."""
    sentences = []
    recipe = describe(Recipe.model_validate(best.recipe))
    if len(row.recipes) == 1:
        sentences.append(f"{recipe}.")
    elif report.verdict == "robust":
        sentences.append(f"Trial {best.position + 1} of at most {len(row.recipes)} is robust: {recipe}.")
    else:
        sentences.append(_why_the_best(row, trials, best, report, recipe))
    sentences.append(VERDICT_SENTENCES[report.verdict])
    sentences.append(ended(Unlearned.model_validate(best.result)))
    return " ".join(sentences)


def _why_the_best(
    row: "Remediation", trials: Sequence["Trial"], best: "Trial", report: AuditReport, recipe: str
) -> str:
    counts = Counter(outcome_of(trial) for trial in trials)
    tried = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    cut = (
        ""
        if len(trials) == len(row.recipes)
        else f"; {len(row.recipes) - len(trials)} more were not tried (budget or quota)"
    )
    text = f"No trial was robust: {tried}{cut}."
    kept = ranking.worst(report, report.plan.precisions)
    most = (
        ""
        if kept is None
        else f" (at worst {whole_percent(kept.retained)} of {METRIC_NAMES[kept.metric]} at {kept.precision})"
    )
    # Its whole audit may have found a collapse at precisions where the trials had not been judged.
    verdicts = {audit.verdict for trial in trials if (audit := trial.audit or trial.screening) is not None}
    if verdicts - {None} == {"collapsed"}:
        return f"{text} Trial {best.position + 1}, {recipe}, is returned although it lost its utility, as all did."
    return (
        f"{text} Trial {best.position + 1}, {recipe}, is returned because it kept the least of the forget set"
        f"{most} among those that did not lose their utility at the precisions where all were judged. It does not"
        " pass the audit."
    )
