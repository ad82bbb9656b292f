"""Reading a stored report, of this version or an earlier one, for the evidence in it.

What was concluded from the evidence (verdict, reasons, the policy's fields) is not read, because versions differ in it.
What is read is checked as far as judging needs it; whether the scores are true cannot be seen from the file.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app import canonical
from app.catalog.metrics import METRICS
from app.catalog.plans import Plan
from app.checkpoints.format.headers import no_doubles
from app.errors import FieldProblem, InvalidRequest, ReportRefused
from app.evidence import artifacts
from app.evidence.artifacts import PREFIX, Named
from app.evidence.diagnosis import Diagnosis
from app.evidence.evaluation import (
    CheckpointInfo,
    Evaluation,
    ForgetSetInfo,
    GenerationScores,
    PrivLeakScores,
    Role,
    TextStatistics,
)
from app.judgement.alarms import Alarm
from app.judgement.statistics.retention import PRIVLEAK_K, SUBSETS
from app.judgement.verdict import FULL, Failure
from app.reports.model import SCHEMA, ArtifactInfo, AuditInfo, Evidence

PAIR: tuple[Role, Role] = ("original", "unlearned")
_SHOWN = 5
"""How many places a refusal names."""


class StoredReport(BaseModel):
    """The parts of a report that do not depend on how it was judged."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    lethe: str
    audit: AuditInfo
    alarms: list[Alarm] = []
    checkpoints: dict[Role, CheckpointInfo]
    forget_set: ForgetSetInfo
    plan: Plan
    policy_digest: str
    evidence: list[Evidence]
    artifacts: list[ArtifactInfo] = []
    diagnosis: Diagnosis | Failure | None = None
    digest: str = Field(description="SHA-256 over the report's canonical bytes, however the file was laid out.")


def parse(body: bytes, what: str = "the report") -> StoredReport:
    """The evidence of a report.

    Args:
        what: What messages call it, such as the file's name.

    Raises:
        ReportRefused: `report_malformed`: it is not a report, or not one that this version can read;
            `report_inconsistent`: its parts do not fit together, for example because scores were removed.
    """
    content, in_one_form = _object(body, what)
    if content.get("schema") != SCHEMA:
        named = f"its schema is {content['schema']!r}" if "schema" in content else "it names no schema"
        raise ReportRefused(
            "report_malformed",
            f"{what} is not a report of an audit: {named}, and this version reads {SCHEMA!r}; give the JSON of"
            " `lethe report get ID --format json` or of `lethe run --out FILE.json`",
        )
    try:
        found = StoredReport.model_validate({**content, "digest": canonical.sha256(in_one_form)})
    except ValidationError as error:
        _refuse_fields(error, what, content.get("lethe"))
    if wrong := list(_inconsistencies(found)):
        raise ReportRefused(
            "report_inconsistent",
            f"{what} is inconsistent: {'; '.join(one.message for one in wrong[:_SHOWN])}. It was changed after it was"
            " written: fetch it again (`lethe report get ID --format json`)",
            errors=wrong,
        )
    return found


def _object(body: bytes, what: str) -> tuple[dict[str, Any], bytes]:
    """The report as JSON, and its canonical bytes."""
    try:
        content = json.loads(body, object_pairs_hook=no_doubles, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ReportRefused(
            "report_malformed",
            f"{what} is not JSON ({error}); Markdown cannot be judged: give the report as JSON"
            " (`lethe report get ID --format json`)",
        ) from error
    if not isinstance(content, dict):
        raise ReportRefused("report_malformed", f"{what} is not a report: it is not a JSON object")
    try:
        return content, canonical.dumps(content)
    except (rfc8785.CanonicalizationError, ValueError, RecursionError) as error:
        raise ReportRefused("report_malformed", f"{what} holds what no report can hold: {error}") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _refuse_fields(error: ValidationError, what: str, written_by: object) -> NoReturn:
    places = [FieldProblem(field=".".join(map(str, e["loc"])), message=e["msg"]) for e in error.errors()]
    said = "; ".join(f"{place.field}: {place.message}" for place in places[:_SHOWN])
    raise ReportRefused(
        "report_malformed",
        f"{what} cannot be read as a report by this version (Lethe {str(written_by)[:40]} wrote it): {said}. If it"
        " was edited, fetch it again; if a later version wrote it, judge it with that version",
        errors=places,
    ) from error


def _inconsistencies(report: StoredReport) -> Iterator[FieldProblem]:
    """Problems that make it impossible to judge the evidence, or would let one score count as another."""
    yield from _plan(report)
    done = [(n, one, one.evaluation) for n, one in enumerate(report.evidence) if one.evaluation is not None]
    for number, one, evaluation in done:
        if one.failure is not None:
            yield _problem(f"evidence.{number}", "has both scores and a failure")
        yield from _scores(f"evidence.{number}.evaluation", evaluation)
    for metric in METRICS:
        # Sizes of one metric: (its scores,) or (its texts to be forgotten, those held out).
        sizes = {
            f"evidence.{number}.evaluation.{metric}": _sizes(found)
            for number, _, evaluation in done
            if (found := evaluation.scores(metric)) is not None
        }
        usual = Counter(sizes.values()).most_common(1)
        for place, size in sizes.items():
            if size != usual[0][0]:
                yield _problem(place, f"has {_counted(size)} items where others have {_counted(usual[0][0])}")


def _plan(report: StoredReport) -> Iterator[FieldProblem]:
    """Problems with the plan: every precision must have what it needs, exactly once."""
    for role in PAIR:
        if role not in report.checkpoints:
            yield _problem(f"checkpoints.{role}", "is missing")
    precisions = report.plan.precisions
    if FULL not in precisions or len(set(precisions)) < len(precisions):
        yield _problem("plan.precisions", f"must have {FULL!r} and nothing twice")
    if len(set(report.plan.metrics)) < len(report.plan.metrics):
        yield _problem("plan.metrics", "has a metric twice")
    if len({one.name for one in report.artifacts}) < len(report.artifacts):
        yield _problem("artifacts", "has a name twice")
    try:
        shipped = artifacts.shipped([Named(one.name, one.of, one.quantization) for one in report.artifacts])
    except InvalidRequest as error:
        yield _problem("artifacts", f"cannot be those of one audit: {error.detail}")
        return
    names = {pair.precision for pair in shipped}
    for precision in precisions:
        if precision.startswith(PREFIX) and precision not in names:
            yield _problem("plan.precisions", f"has {precision!r}, and no such artifact is named")
    wanted = {(role, name) for name in precisions if not name.startswith(PREFIX) for role in report.checkpoints}
    for pair in shipped:
        wanted.add(("unlearned", pair.precision))
        if pair.original is not None:
            wanted.add(("original", pair.precision))
    there = Counter((one.role, one.precision) for one in report.evidence)
    for (role, precision), count in there.items():
        if count > 1:
            yield _problem("evidence", f"has {count} of the {role} at {precision}")
        if (role, precision) not in wanted:
            yield _problem("evidence", f"has the {role} at {precision}, which the plan does not ask for")
    for role, precision in sorted(wanted - set(there)):
        yield _problem("evidence", f"lacks the {role} at {precision}")


def _scores(place: str, evaluation: Evaluation) -> Iterator[FieldProblem]:
    """Problems with the scores: lists that belong together must be equally long, and values valid scores."""
    for metric in METRICS:
        found = evaluation.scores(metric)
        if isinstance(found, GenerationScores):
            yield from _generation(f"{place}.{metric}", found)
        elif isinstance(found, PrivLeakScores):
            yield from _membership(f"{place}.{metric}", found)


def _generation(place: str, found: GenerationScores) -> Iterator[FieldProblem]:
    size = len(found.scores)
    columns: dict[str, Sequence[float | None]] = {"scores": found.scores, **found.extras}
    for name, column in columns.items():
        if not all(value is None or 0 <= value <= 1 for value in column):
            yield _problem(f"{place}.{name}", "has a value outside 0 to 1")
    yield from _columns(place, found.extras, size)
    yield from _flags(place, found.flags.items(), size)


def _membership(place: str, found: PrivLeakScores) -> Iterator[FieldProblem]:
    for subset in (*SUBSETS, "retain"):
        texts: TextStatistics | None = getattr(found, subset)
        if texts is None:
            continue
        size = len(texts.loss)
        columns = {"tokens": texts.tokens, "zlib_ratio": texts.zlib_ratio, **texts.min_k}
        yield from _columns(f"{place}.{subset}", columns, size)
        if size == 0 or PRIVLEAK_K not in texts.min_k:
            yield _problem(f"{place}.{subset}", f"has no texts with min_k {PRIVLEAK_K}")
        flags = [(name, items) for name, items in found.flags.items() if name.startswith(f"{subset}.")]
        yield from _flags(place, flags, size)


def _columns(place: str, columns: dict[str, Any], size: int) -> Iterator[FieldProblem]:
    for name, column in columns.items():
        if len(column) != size:
            yield _problem(f"{place}.{name}", f"has {len(column)} values for {size} items")


def _flags(place: str, flags: Iterable[tuple[str, Sequence[int]]], size: int) -> Iterator[FieldProblem]:
    for name, items in flags:
        if not all(0 <= item < size for item in items):
            yield _problem(f"{place}.flags.{name}", f"names an item that is not among the {size}")


def _sizes(found: GenerationScores | PrivLeakScores) -> tuple[int, ...]:
    if isinstance(found, GenerationScores):
        return (len(found.scores),)
    return tuple(len(getattr(found, subset).loss) for subset in SUBSETS)


def _counted(sizes: tuple[int, ...]) -> str:
    return " and ".join(map(str, sizes))


def _problem(field: str, message: str) -> FieldProblem:
    return FieldProblem(field=field, message=f"{field} {message}")
