"""What a command fetched, for standard output or a file."""

from pathlib import Path

import typer

from app.cli import exit_codes


def hand_over(body: bytes, out: Path | None) -> None:
    """Print a text, or write it to a file and say so."""
    if out is None:
        typer.echo(body.decode())
        return
    out.write_bytes(body)
    exit_codes.err.print(f"{len(body):,} bytes to {out}", style="dim")
