"""Sentences on what shows that an artifact was made from the model of the pair that it is said to be of."""

from collections.abc import Sequence

from app.evidence.artifacts import Shipped
from app.evidence.diagnosis import Diagnosis
from app.evidence.evaluation import Evaluation, Provenance, Role
from app.judgement.verdict import Results

_OTHER: dict[Role, Role] = {"unlearned": "original", "original": "unlearned"}


def notes(pairs: Sequence[Shipped], results: Results, diagnosis: object) -> list[str]:
    """One or two sentences for each artifact that was evaluated together with its base."""
    update = diagnosis.overall.relative_update if isinstance(diagnosis, Diagnosis) else None
    found: list[str] = []
    for pair in pairs:
        for one in (pair.original, pair.unlearned):
            result = results.get((one.of, pair.precision)) if one else None
            if one and isinstance(result, Evaluation) and result.census and result.census.provenance:
                shown = result.census.provenance
                found.append(f"{one.name}: {_shown(shown, one.of)} {_nearer(shown, one.of, update)}".strip())
    return found


def _shown(found: Provenance, of: Role) -> str:
    undone = ", its factors per row and column fitted and undone (it is rescaled, as by AWQ)" if found.rescaled else ""
    return (
        f"{found.identical} tensors that it leaves unquantized equal those of the {of} checkpoint; relative to that"
        f" checkpoint, the median error of its modules is {found.median_error:.3g}{undone}."
    )


def _nearer(found: Provenance, of: Role, update: float | None) -> str:
    """By the triangle inequality: what is nearer to one model than half the pair's distance is nearer to that one."""
    if update is None:
        return ""
    differ = f"The pair's weights differ by {update:.3g} of their norm"
    if 2 * found.median_error < update:
        return f"{differ}, so it is nearer to the {of} than to the {_OTHER[of]}."
    return (
        f"{differ}, less than twice that error, so the quantized weights cannot show whether it was made from the"
        f" {_OTHER[of]} instead; unquantized tensors do, where the pair's differ."
    )
