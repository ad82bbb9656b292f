"""A report on a terminal."""

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.reports.report import Report
from app.reports.table import HEADER, rows
from app.reports.verdict import Outcome

COLOURS: dict[Outcome, str] = {
    "robust": "green",
    "recovered": "red",
    "not_forgotten": "red",
    "collapsed": "red",
    "inconclusive": "yellow",
}


def summary(report: Report) -> RenderableType:
    """The table, the verdict and the reasons."""
    return Group(table(report), verdict(report), *reasons(report))


def verdict(report: Report) -> Text:
    """The verdict and its sentence."""
    return Text.assemble(verdict_name(report.verdict), "  ", report.sentence)


def verdict_name(outcome: Outcome) -> Text:
    """An outcome in its colour."""
    return Text(outcome.upper().replace("_", " "), style=f"bold {COLOURS[outcome]}")


def reasons(report: Report) -> list[Text]:
    """The reasons, a line each."""
    return [Text(f"  {reason.precision}: {reason.sentence}", style="dim") for reason in report.reasons]


def table(report: Report) -> Table:
    """Precision x metric for original and unlearned: scores x100, retention, recovery with its interval, outcome."""
    made = Table(title=f"{report.audit.name}", title_justify="left", title_style="bold", pad_edge=False)
    for name in HEADER:
        made.add_column(name, justify="right" if name in HEADER[2:7] else "left", no_wrap=name != "outcome")
    colours = {outcome.replace("_", " "): colour for outcome, colour in COLOURS.items()}
    last = ""
    for row in rows(report):
        if last and row.precision != last:
            made.add_section()
        cells = list(row)
        cells[0] = row.precision if row.precision != last else ""
        colour = colours.get(row.outcome.lower(), "dim")
        cells[-1] = f"[{'bold ' if row.outcome.isupper() else ''}{colour}]{row.outcome}[/]"
        made.add_row(*cells)
        last = row.precision
    return made


def show(console: Console, report: Report) -> None:
    """Print the summary; a console narrower than the table gets it at full width all the same."""
    needed = console.measure(table(report)).maximum
    console.print(summary(report), width=max(console.width, needed), soft_wrap=False)
