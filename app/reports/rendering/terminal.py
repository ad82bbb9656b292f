"""A report, or a diagnosis, on a terminal."""

from rich import box
from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from app.evidence.diagnosis import Diagnosis
from app.judgement.verdict import Outcome
from app.reports.model import AuditReport
from app.reports.rendering import diagnosis as explain
from app.reports.rendering import techniques
from app.reports.rendering.table import HEADER, grouped, rows

COLOURS: dict[Outcome, str] = {
    "robust": "green",
    "recovered": "red",
    "not_forgotten": "red",
    "collapsed": "red",
    "inconclusive": "yellow",
}


def verdict(report: AuditReport) -> Text:
    """The verdict and its sentence."""
    return Text.assemble(verdict_name(report.verdict), "  ", report.sentence)


def verdict_name(outcome: Outcome) -> Text:
    """An outcome in its colour."""
    return Text(outcome.upper().replace("_", " "), style=f"bold {COLOURS[outcome]}")


def alarms(report: AuditReport) -> list[Text]:
    """The alarms, one per line."""
    return [Text(f"ALARM  {found.sentence}", style="bold red") for found in report.alarms]


def reasons(report: AuditReport) -> list[Text]:
    """The reasons, one per line."""
    return [Text(f"  {', '.join(at)}: {reason.sentence}", style="dim") for reason, at in grouped(report.reasons)]


def table(report: AuditReport) -> Table:
    """Precision x metric for original and unlearned: scores x100, retention, recovery with its interval, outcome."""
    made = Table(
        title=Text(report.audit.name), title_justify="left", title_style="bold", pad_edge=False, box=box.SIMPLE_HEAD
    )
    for name in HEADER:
        made.add_column(name, justify="right" if name in HEADER[2:10] else "left", no_wrap=name != "outcome")
    colours = {outcome.replace("_", " "): colour for outcome, colour in COLOURS.items()}
    last = ""
    for row in rows(report):
        if last and row.precision != last:
            made.add_section()
        cells = [Text(cell) for cell in row]
        if row.precision == last:
            cells[0] = Text("")
        cells[-1].stylize(colours.get(row.outcome.lower(), "dim") + (" bold" if row.outcome.isupper() else ""))
        made.add_row(*cells)
        last = row.precision
    return made


def show_techniques(console: Console, report: AuditReport) -> None:
    """Print what is retained, technique x bits, if the plan has several."""
    found = techniques.table(report)
    if found is None:
        return
    made = Table(
        title=Text(f"{report.audit.name}: retained, by technique and bits"),
        title_justify="left",
        title_style="bold",
        pad_edge=False,
        box=box.SIMPLE_HEAD,
    )
    for number, name in enumerate(found[0]):
        made.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in found[1]:
        made.add_row(*row)
    wide(console, made)
    console.print(Text(techniques.caption(report), style="dim"))


def show(console: Console, report: AuditReport) -> None:
    """Print the tables, the verdict, the alarms, the reasons, and a sentence on the weights."""
    wide(console, table(report))
    show_techniques(console, report)
    notes = [Text(f"  {note}", style="dim") for note in report.notes]
    if isinstance(report.diagnosis, Diagnosis):
        notes.append(Text(f"  weights: {explain.headline(report.diagnosis)}", style="dim"))
    missed = [Text(f"  {line}") for line in report.missed]
    console.print(Group(verdict(report), *alarms(report), *missed, *reasons(report), *notes))


def show_diagnosis(console: Console, diagnosis: Diagnosis, top: int = explain.TOP) -> None:
    """Print the headline, the modules with the largest relative updates, and a note on what this cannot show."""
    made = Table(pad_edge=False, box=box.SIMPLE_HEAD)
    for name in explain.HEADER:
        left = name in (explain.HEADER.module, explain.HEADER.precision)
        made.add_column(name, justify="left" if left else "right", no_wrap=True)
    for row in explain.rows(diagnosis, top):
        if row.module:
            made.add_section()
        made.add_row(*row)
    console.print(Text(explain.headline(diagnosis)))
    wide(console, made)
    console.print(Text(f"{explain.below(diagnosis, top)}\n{diagnosis.note}", style="dim"))


def wide(console: Console, made: Table) -> None:
    """Print a table at its full width even if the console is narrower: truncated figures are useless."""
    needed = Measurement.get(console, console.options.update(width=1000), made).maximum
    given = console.width
    console.width = max(given, needed)
    console.print(made)
    console.width = given
