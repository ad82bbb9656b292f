"""`lethe report`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from app import exits
from app.cli.connect import connect

app = typer.Typer(help="Reports.", no_args_is_help=True)


class Format(StrEnum):
    """What the service offers."""

    JSON = "json"
    MARKDOWN = "markdown"


@app.command()
def get(
    audit: Annotated[str, typer.Argument(help="The audit's id.")],
    form: Annotated[Format, typer.Option("--format", help="json holds all the evidence; markdown is for reading.")] = (
        Format.MARKDOWN
    ),
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write to this file.")] = None,
) -> None:
    """Fetch an audit's report."""
    with connect() as client:
        body = client.report_body(audit, form.value)
    if out is None:
        typer.echo(body.decode())
    else:
        out.write_bytes(body)
        exits.err.print(f"{len(body):,} bytes to {out}", style="dim")
