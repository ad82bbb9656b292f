"""`lethe precisions`: which precisions there are, and which this machine can apply."""

import json
from typing import Annotated

import typer
from rich.table import Table

from app.catalog.plans import PLANS
from app.catalog.quantizers import SOURCES
from app.cli import exit_codes
from app.evidence import artifacts
from worker.engine.quantizers.availability import NOT_OFFERED, availability, installed, shipped_unavailable

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command("lethe precisions")
def precisions(
    as_json: Annotated[bool, typer.Option("--json", help="One object per precision.")] = False,
) -> None:
    """List every precision, its library, and whether this machine can apply it (and why not)."""
    found = availability()
    if as_json:
        rows = [
            {
                "name": item.precision.name,
                "method": item.precision.method,
                "bits": item.precision.bits,
                "granularity": item.precision.granularity,
                "group_size": item.precision.group_size,
                "calibrated": item.precision.calibration is not None,
                "library": item.precision.requires or "lethe",
                "version": item.version,
                "available": item.reason is None,
                "reason": item.reason,
            }
            for item in found
        ]
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table(pad_edge=False, box=None)
    for column in ("precision", "bits", "one step per", "library", "here"):
        table.add_column(column)
    for item in found:
        size = item.precision.group_size
        table.add_row(
            item.precision.name,
            str(item.precision.bits or ""),
            f"{size} weights" if size else item.precision.granularity or "",
            f"{item.precision.requires or 'lethe'} {item.version or ''}".strip(),
            "yes" if item.reason is None else f"no: {item.reason}",
        )
    for method, format_precision in artifacts.FORMAT_PRECISIONS.items():
        library = artifacts.LIBRARIES[format_precision][0]
        reason = shipped_unavailable(format_precision)
        here = "yes" if reason is None else f"no: {reason}"
        table.add_row(f"artifact: {method}", "", "", f"{library} {installed(library) or ''}".strip(), here)
    exit_codes.out.print(table)
    exit_codes.out.print(f"\nGPTQ and AWQ take @{', @'.join(SOURCES)} (the texts to calibrate on; default generic).")
    for name, why in NOT_OFFERED.items():
        exit_codes.out.print(f"Not offered: {name}: {why}.")
    for plan, members in PLANS.items():
        exit_codes.out.print(f"Plan {plan}: {', '.join(members)}")


def main() -> None:
    """`lethe precisions`, to its end."""
    exit_codes.run(app, "lethe precisions")
