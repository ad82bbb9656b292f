"""The model card that goes with a new checkpoint: README.md."""

from app import __version__
from app.remediations.words import STOPPED
from app.reports.render import table
from app.reports.report import Report
from app.reports.table import HEADER, rows
from app.reports.unlearning import Unlearned

_FRONT = "---\nlibrary_name: transformers\ntags:\n- unlearning\n---\n"


def card(remediation_id: str, result: Unlearned, report: Report | None) -> str:
    """What was done to which model, and how it was judged.

    Args:
        report: Of the audit of this checkpoint; None while there is none, which the card says.
    """
    recipe = result.recipe
    inputs = [
        ("this checkpoint", f"`{result.digest}`"),
        ("original", f"`{result.original.digest}`"),
        ("forget set", f"`{result.forget_set.digest}`"),
        ("Lethe", result.engine.lethe),
        ("torch, transformers", f"{result.engine.torch}, {result.engine.transformers}"),
        ("trained on", f"{result.engine.device}, {result.engine.dtype}"),
        ("remediation", remediation_id),
    ]
    settings = [
        (name, "–" if value is None else value)
        for name, value in recipe.hyperparameters.model_dump(mode="json").items()
    ]
    sections = (
        f"{_FRONT}\n# {result.original.architecture}, unlearned by {recipe.method} over {recipe.base}\n",
        f"{result.steps:,} optimiser steps. {STOPPED[result.stopped]}"
        f" Of {result.parameters_total:,} parameters the stored values of {result.parameters_changed:,} differ from the"
        " original's.\n",
        "## Made of\n\n" + table(("what", "which"), inputs),
        "## Hyperparameters\n\n" + table(("name", "value"), settings),
        _verdict(report),
    )
    return "\n".join(sections)


def _verdict(report: Report | None) -> str:
    if report is None:
        return f"## Audit\n\nNot judged yet when this was written (Lethe {__version__}).\n"
    missing = "\n".join(f"- {line}" for line in report.not_tested)
    return (
        f"## Audit: {report.verdict.upper().replace('_', ' ')}\n\n{report.sentence} (Audit {report.audit.id}, policy"
        f" `{report.policy_digest}`.)\n\n{table(HEADER, rows(report))}\nNot tested:\n\n{missing}\n"
    )
