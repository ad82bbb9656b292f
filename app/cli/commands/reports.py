"""`lethe report`."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from app.cli import exit_codes
from app.cli.connect import connect
from app.cli.files import hand_over
from app.errors import InvalidRequest, NotFound
from app.judgement.policy import Policy, read_policy
from app.reports import stored
from app.reports.again import judge_again
from app.reports.model import AuditInfo
from app.reports.rendering import terminal
from app.reports.rendering.formats import FORMATS, named, write

app = typer.Typer(help="Reports.", no_args_is_help=True)


@app.command()
def get(
    audit: Annotated[str, typer.Argument(help="The audit's id.")],
    form: Annotated[
        str,
        typer.Option("--format", help=f"{', '.join(FORMATS)}: json holds all the evidence; markdown is for reading."),
    ] = "markdown",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write to this file.")] = None,
) -> None:
    """Fetch an audit's report."""
    chosen = named(form)
    with connect() as client:
        body = client.report_body(audit, chosen.name)
    hand_over(body, out)


@app.command()
def judge(
    report: Annotated[Path, typer.Argument(help="A report as JSON, of this version or an earlier one.")],
    policy: Annotated[
        Path | None, typer.Option(help="JSON file with thresholds that differ from the defaults.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the new report here: JSON, or Markdown if it ends in .md.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="A name for the new report; by default the earlier one's.")] = None,
) -> None:
    """Judge a report's stored scores again, without a service. Exit code: 0 robust, 1 failed, 2 inconclusive, 3 usage.

    Nothing is measured anew, and the earlier report stays as it is. Its signature is not checked, so the new verdict is
    only as good as the file.
    """
    _check_out(out, report)
    judged_by = Policy() if policy is None else read_policy(policy)
    exit_codes.err.print(f"policy: {judged_by.digest()}", style="dim", soft_wrap=True)
    try:
        body = report.read_bytes()
    except OSError as error:
        raise NotFound("not_found", f"{report}: {error.strerror}") from error
    earlier = stored.parse(body, str(report))
    exit_codes.err.print(f"judged again: {earlier.digest}; its signature is not checked", style="dim", soft_wrap=True)
    now = datetime.now(UTC)
    audit = AuditInfo(id=None, name=name or earlier.audit.name, created_at=now, finished_at=now)
    made = judge_again(earlier, judged_by, audit, from_file=True)
    if out is not None:
        write(made, out)
    terminal.show(exit_codes.out, made)
    if out is not None:
        exit_codes.err.print(f"report: {out}", style="dim")
    raise typer.Exit(exit_codes.EXIT_CODES[made.verdict])


def _check_out(out: Path | None, report: Path) -> None:
    if out is None:
        return
    if out.is_dir() or not out.parent.is_dir():
        raise InvalidRequest("invalid_request", f"--out {out}: give a file in a directory that exists")
    if out.exists() and report.exists() and out.samefile(report):
        raise InvalidRequest(
            "invalid_request", f"--out {out} is the earlier report, which must stay as it is; give another file"
        )
