"""The model card of an unlearned checkpoint, as Markdown for its README.md."""

from app.catalog.methods import UNLEARNING_METHODS
from app.evidence.unlearning import Reading, Unlearned
from app.reports.rendering.markdown import table

STOPPED = {
    "steps": "all planned steps were made",
    "forgotten": "the watched half of the items counted as forgotten",
    "utility_floor": "utility fell below the floor; this is the state at the previous reading",
    "non_finite": "training produced NaN or infinity; this is the last good state",
    "runaway": "the retain loss diverged; this is the last good state",
}
"""Why training ended, as part of a sentence."""
NOT_AUDITED = "Not audited. It is not known whether forgetting survives quantization."


def model_card(record: Unlearned, verdict: str = NOT_AUDITED) -> str:
    """What was done to which model, so that it can be repeated; `verdict`: what an audit found, in Markdown."""
    recipe, entry = record.recipe, UNLEARNING_METHODS[record.recipe.method]
    method = f"{entry.title} over {recipe.loss}"
    facts = [
        ("this checkpoint", f"`{record.digest}`"),
        ("original", f"`{record.original.digest}` ({record.original.uri})"),
        ("forget set", f"`{record.forget_set.digest}`"),
        (
            "code",
            f"lethe {record.engine.lethe}, torch {record.engine.torch}, transformers {record.engine.transformers}",
        ),
        ("trains", entry.summary),
        ("method from", entry.source),
        ("trained in", f"{record.engine.dtype} on {record.engine.device}"),
        ("steps", f"{record.steps} of {record.steps_planned}: {STOPPED[record.stopped]}"),
        ("parameters trained", f"{record.parameters_trained:,} (of the model's {record.parameters_total:,})"),
        ("parameters changed", f"{record.parameters_changed:,}"),
    ]
    if record.resumed:
        facts.append(("interrupted", f"resumed {record.resumed} times"))
    settings = recipe.hyperparameters.model_dump()
    parts = [
        "---\ntags:\n- machine-unlearning\n- lethe\n---",
        f"# {record.original.architecture}, unlearned by {method}",
        "Made by Lethe from an original checkpoint, to forget a forget set."
        " `unlearning.json` beside this file is the whole record, with losses"
        f"{' and the saliency map' if record.saliency else ''}.",
        table(["", ""], [list(row) for row in facts]),
        "## Audit",
        verdict,
        "## Hyperparameters",
        table(["name", "value"], [[name, str(value)] for name, value in settings.items()]),
    ]
    if record.readings:
        parts += [
            "## The stop rule's readings",
            "Every second item of the forget set decided when to stop; scores on those items should be read with this"
            " in mind.",
            table(
                ["step", "passages", "answers", "membership", "utility"],
                [[str(reading.step), *_shares(reading)] for reading in (record.readings[0], record.readings[-1])],
            ),
        ]
    return "\n\n".join(parts) + "\n"


def _shares(reading: Reading) -> list[str]:
    values = (reading.passages, reading.answers, reading.membership, reading.utility)
    return ["-" if value is None else f"{value:.2f}" for value in values]
