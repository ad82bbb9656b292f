"""A report for people: Markdown."""

from collections.abc import Sequence

from app.catalog.metrics import METRIC_NAMES, METRICS
from app.evidence.diagnosis import Diagnosis
from app.judgement.figures import level, percent
from app.reports.model import AuditReport, Evidence
from app.reports.rendering import diagnosis as explain
from app.reports.rendering import techniques
from app.reports.rendering.table import (
    CORROBORATION_EXPLANATION,
    CORROBORATION_HEADER,
    EXPLANATION,
    HEADER,
    corroboration,
    grouped,
    rows,
)


def markdown(report: AuditReport) -> str:
    """The whole report except the per-item scores, as CommonMark with tables."""
    sections = (
        _head(report),
        *_alarms(report),
        _reasons(report),
        *_missed(report),
        _scores(report),
        *_corroboration(report),
        *_techniques(report),
        *_diagnosis(report),
        _proof(report),
        _not_tested(report),
        _inputs(report),
        _policy(report),
    )
    return "\n".join(sections)


def table(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""

    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(_cell(cell) for cell in cells) + " |"

    return "\n".join([line(header), "|" + " --- |" * len(header), *(line(cells) for cells in lines)]) + "\n"


def _cell(value: object) -> str:
    return str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _head(report: AuditReport) -> str:
    audit, again = report.audit, report.judged_again
    origin = "" if again is None else f"\nJudged again from report `{again.report}`, by Lethe {again.lethe}.\n"
    return (
        f"# Audit {_cell(audit.name)}: {report.verdict.upper().replace('_', ' ')}\n\n{report.sentence}\n\n"
        f"Audit {audit.id or '(without the service)'}, finished {audit.finished_at:%Y-%m-%d %H:%M:%S} UTC, "
        f"Lethe {report.lethe}.\n{origin}"
    )


def _alarms(report: AuditReport) -> list[str]:
    if not report.alarms:
        return []
    lines = [f"- **ALARM** `{found.code}`: {_cell(found.sentence)}" for found in report.alarms]
    return ["## Alarms\n\n" + "\n".join(lines) + "\n"]


def _reasons(report: AuditReport) -> str:
    lines = [
        f"- **{', '.join(precisions)}** `{reason.code}`: {_cell(reason.sentence)}"
        for reason, precisions in grouped(report.reasons)
    ]
    return "## Why\n\n" + "\n".join(lines) + "\n"


def _scores(report: AuditReport) -> str:
    confidence = level(report.policy.confidence)
    notes = "".join(f"\n{_cell(line)}\n" for line in report.notes)
    note = f"\n{EXPLANATION} Intervals: paired over items, by linearisation, {confidence}.\n{notes}"
    flags = _flags(report)
    return "## Scores\n\n" + table(HEADER, rows(report)) + note + (f"\nFlagged items:\n\n{flags}" if flags else "")


def _missed(report: AuditReport) -> list[str]:
    if not report.missed:
        return []
    return ["## What could have been missed\n\n" + "\n".join(f"- {_cell(line)}" for line in report.missed) + "\n"]


def _corroboration(report: AuditReport) -> list[str]:
    found = corroboration(report)
    if not found:
        return []
    return [f"## Beyond one greedy answer\n\n{table(CORROBORATION_HEADER, found)}\n{CORROBORATION_EXPLANATION}\n"]


def _techniques(report: AuditReport) -> list[str]:
    found = techniques.table(report)
    if found is None:
        return []
    return [f"## Retained, by technique and bits\n\n{table(*found)}\n{techniques.caption(report)}\n"]


def _flags(report: AuditReport) -> str:
    """How many items were cut or scored NaN; the items themselves are in the JSON."""
    lines = []
    for evidence in report.evidence:
        for metric in METRICS:
            scores = None if evidence.evaluation is None else evidence.evaluation.scores(metric)
            lines += [
                f"- {evidence.role}, {evidence.precision}, {METRIC_NAMES[metric]}: {flag} {len(items)}\n"
                for flag, items in sorted((scores.flags if scores else {}).items())
                if items
            ]
    return "".join(lines)


def _diagnosis(report: AuditReport) -> list[str]:
    found = report.diagnosis
    if found is None:
        return []
    if isinstance(found, Diagnosis):
        return [explain.markdown(found, table, top=5)]
    why = f"The weights were not compared: `{found.code}`: {_cell(found.detail)}. Without that, no audit is robust."
    return [f"{explain.TITLE}\n\n{why}\n"]


def _proof(report: AuditReport) -> str:
    lines = [_proof_row(evidence) for evidence in report.evidence]
    header = ("checkpoint", "precision", "applied by", "modules", "parameters covered", "largest error", "ran on")
    return "## Proof that each precision was applied\n\n" + table(header, lines)


def _proof_row(evidence: Evidence) -> tuple[object, ...]:
    done = evidence.evaluation
    if done is None:
        failure = evidence.failure
        why = f"`{failure.code}`: {failure.detail}" if failure else "no result"
        return evidence.role, evidence.precision, why, "", "", "", ""
    by = f"{done.precision.library} {done.precision.version}"
    ran = f"{done.engine.device}, {done.engine.dtype}, torch {done.engine.torch}"
    if done.census is None:
        return evidence.role, evidence.precision, by, "none", "0 %", "–", ran
    errors = [module.relative_error for module in done.census.modules if module.relative_error is not None]
    largest = f"{max(errors):.4f}" if errors else "not known"
    covered = percent(done.census.coverage)
    return evidence.role, evidence.precision, by, len(done.census.modules), covered, largest, ran


def _not_tested(report: AuditReport) -> str:
    return "## Not tested\n\n" + "\n".join(f"- {_cell(line)}" for line in report.not_tested) + "\n"


def _inputs(report: AuditReport) -> str:
    lines: list[tuple[object, ...]] = [
        (role, f"{info.architecture}, {info.parameters:,} parameters, {info.dtype}", f"`{info.digest}`")
        for role, info in report.checkpoints.items()
    ]
    lines += [
        (
            f"artifact {one.name}, of the {one.of}",
            f"{one.quantization.method}, {one.quantization.bits or 'several'} bits, {one.checkpoint.parameters:,}"
            " parameters",
            f"`{one.checkpoint.digest}`",
        )
        for one in report.artifacts
    ]
    repeated = report.forget_set.duplicates
    counts = ", ".join(
        f"{name} {count}" + (f" ({len(repeated[name])} repeat others and do not count)" if name in repeated else "")
        for name, count in report.forget_set.counts.items()
    )
    lines.append(("forget set", counts, f"`{report.forget_set.digest}`"))
    derived = "".join(f"\n{metric} was derived: {how}\n" for metric, how in report.forget_set.derived.items())
    return "## What was tested\n\n" + table(("what", "content", "digest"), lines) + derived


def _policy(report: AuditReport) -> str:
    lines = list(report.policy.model_dump().items())
    when = "Fixed before the run" if report.judged_again is None else "Chosen after the run"
    return f"## Policy\n\n{when}: `{report.policy_digest}`\n\n" + table(("threshold", "value"), lines)
