"""How a remediation ended, in words."""

from collections import Counter
from collections.abc import Sequence

from app.methods import Recipe
from app.models import Remediation, Trial
from app.remediations import ranking
from app.remediations.recipes import describe
from app.reports.report import VERDICT_SENTENCES, Report
from app.reports.unlearning import StopReason, Unlearned
from app.reports.verdict import METRIC_NAMES

STOPPED: dict[StopReason, str] = {
    "steps": "All planned steps were made.",
    "forgotten": "It stopped as soon as the watched half of the forget set's items counted as forgotten; these scores"
    " should be read with that in mind.",
    "utility_floor": "It stopped when utility fell below the floor, and went back to the reading before.",
    "non_finite": "Training stopped because the loss was no longer finite; the new model is the last good state.",
    "runaway": "Training stopped because the loss ran away; the new model is the last good state.",
}
"""Why training ended -> a sentence."""


def outcome_of(trial: Trial) -> str:
    """A trial's outcome: its verdict, or why it has none."""
    for audit in (trial.audit, trial.screening):
        if audit is not None:
            return str(audit.verdict or audit.state).replace("_", " ")
    return f"failed ({trial.error_code})" if trial.error_code else str(trial.state)


def ending(row: Remediation, trials: Sequence[Trial], best: Trial, report: Report) -> str:
    """Which model is returned, why this one, and what its audit says."""
    sentences = []
    recipe = describe(Recipe.model_validate(best.recipe))
    if len(row.recipes) == 1:
        sentences.append(f"{recipe}.")
    elif report.verdict == "robust":
        sentences.append(f"Trial {best.position + 1} of at most {len(row.recipes)} is robust: {recipe}.")
    else:
        sentences.append(_why_the_best(row, trials, best, report, recipe))
    sentences.append(VERDICT_SENTENCES[report.verdict])
    sentences.append(STOPPED[Unlearned.model_validate(best.result).stopped])
    return " ".join(sentences)


def _why_the_best(row: Remediation, trials: Sequence[Trial], best: Trial, report: Report, recipe: str) -> str:
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
        else f" (at worst {100 * kept.retained:.0f} % of {METRIC_NAMES[kept.metric]} at {kept.precision})"
    )
    if report.verdict == "collapsed":
        return f"{text} Trial {best.position + 1}, {recipe}, is returned although it lost its utility: all did."
    return (
        f"{text} Trial {best.position + 1}, {recipe}, is returned because it kept the least of the forget set"
        f"{most} among those that did not lose their utility at the precisions where all were judged. It does not"
        " pass the audit."
    )
