"""`lethe remediate` and `lethe remediation`."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.catalog.methods import summaries
from app.catalog.recipes import LOSSES
from app.cli import exit_codes
from app.cli.connect import connect
from app.cli.files import hand_over
from app.cli.hyperparameters import apply_options
from app.cli.progress import follow_remediation
from app.remediations.report import HEADER, RemediationReport, rows
from app.reports.rendering import terminal

app = typer.Typer(help="Remediations: follow, read, delete what they made.", no_args_is_help=True)


class Format(StrEnum):
    """The formats of a remediation's report."""

    JSON = "json"
    MARKDOWN = "markdown"


RemediationId = Annotated[str, typer.Argument(help="The remediation's id.")]


def remediate(
    audit: Annotated[str, typer.Argument(help="The finished audit whose original is to be unlearned again.")],
    method: Annotated[
        str,
        typer.Option(help=f"{summaries()}; auto: the service's ladder (`remediation ladder`)."),
    ] = "auto",
    loss: Annotated[str | None, typer.Option(help=f"The loss: {', '.join(LOSSES)}.")] = None,
    given: Annotated[
        list[str] | None,
        typer.Option("--set", help="A hyperparameter, such as alpha=8 or stop.every=5; repeatable."),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="With auto: the most trials to run.", min=1)] = None,
    minutes: Annotated[
        float | None, typer.Option(help="With auto: minutes after which no further trial starts.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="A name for lists and reports.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key and request give the same remediation.")
    ] = None,
    wait_: Annotated[bool, typer.Option("--wait", help="Then wait for it to end, as `remediation wait` does.")] = False,
) -> None:
    """Unlearn an audit's original again so that forgetting survives quantization, and audit the result. Prints the
    remediation's id."""
    body: dict[str, Any] = {"method": method, "hyperparameters": apply_options({}, given or [])}
    body |= {key: value for key, value in (("loss", loss), ("name", name)) if value is not None}
    budget = {key: value for key, value in (("trials", trials), ("minutes", minutes)) if value is not None}
    if budget:
        body["budget"] = budget
    with connect() as client:
        found = client.remediate(audit, body, idempotency_key)
    typer.echo(found["id"])
    if wait_:
        wait(found["id"])


@app.command()
def wait(remediation: RemediationId) -> None:
    """Follow a remediation to its end; the exit code is its new model's verdict: 0 robust, 1 failed, 2 inconclusive or
    cancelled, 4 no new model."""
    with connect() as client:
        ended = follow_remediation(client, remediation)
        if ended["state"] == "cancelled":
            exit_codes.err.print("the remediation was cancelled", style="yellow")
            raise typer.Exit(exit_codes.INCONCLUSIVE)
        if ended["state"] == "failed":
            exit_codes.err.print(Text.assemble((ended["error_code"], "bold red"), f"  {ended['sentence']}"))
            raise typer.Exit(exit_codes.SERVICE)
        report = RemediationReport.model_validate_json(client.remediation_report(remediation, "json"))
    show_report(exit_codes.err, report)
    raise typer.Exit(exit_codes.EXIT_CODES[report.verdict])


def show_report(console: Console, report: RemediationReport) -> None:
    """Print the comparison before and after, the verdicts, and how the remediation ended."""
    made = Table(title=Text(report.name), title_justify="left", title_style="bold", pad_edge=False, box=box.SIMPLE_HEAD)
    for name in HEADER:
        made.add_column(name, justify="right" if name in HEADER[2:8] else "left", no_wrap=True)
    last = ""
    for row in rows(report):
        if last and row.precision != last:
            made.add_section()
        made.add_row("" if row.precision == last else row.precision, *row[1:])
        last = row.precision
    terminal.wide(console, made)
    before, after = terminal.verdict_name(report.verdict_before), terminal.verdict_name(report.verdict)
    console.print(Text.assemble(before, ", now ", after, f"  {report.sentence}"))
    console.print(Text(f"new model: {report.checkpoints['new'].uri}", style="dim"))


@app.command()
def show(
    remediation: RemediationId,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as the API returns it.")] = False,
) -> None:
    """Show a remediation with its trials."""
    with connect() as client:
        found = client.get(f"/v1/remediations/{remediation}")
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(f"{found['id']}  {found['name']}: {found['state']} {found['verdict'] or ''}".rstrip())
    for trial in found["trials"]:
        recipe, losses = trial["recipe"], trial["losses"]
        at = f"{trial['stage']} {trial['done']}/{trial['total']}" if trial["stage"] else ""
        loss = f"loss {losses[-1]['loss']:.4g}" if losses else ""
        error = f"{trial['error_code']}: {trial['error_detail']}" if trial["error_code"] else ""
        verdicts = " ".join(
            f"{kind} {trial[kind]['verdict'] or trial[kind]['state']}" for kind in ("screening", "audit") if trial[kind]
        )
        parts = (trial["state"], at, loss, verdicts, error)
        typer.echo(
            f"  {trial['position'] + 1:2} {recipe['method']} {recipe['loss']:8} {'  '.join(filter(None, parts))}"
        )
        if trial["model"]:
            gone = f"  deleted {trial['model']['deleted_at']}" if trial["model"]["deleted_at"] else ""
            typer.echo(f"     {trial['model']['uri']}  {trial['model']['digest']}{gone}")
    if found["sentence"]:
        typer.echo(found["sentence"])


@app.command("list")
def list_(
    state: Annotated[str | None, typer.Option(help="queued, running, finished, failed, cancelled")] = None,
    audit: Annotated[str | None, typer.Option(help="Only those of this audit.")] = None,
    limit: Annotated[int, typer.Option(help="Show at most this many.", min=1, max=100)] = 50,
) -> None:
    """List remediations, newest first."""
    with connect() as client:
        found = client.get("/v1/remediations", state=state, audit=audit, limit=limit)
    for item in found["items"]:
        typer.echo(f"{item['id']}  {item['state']:9} {item['verdict'] or '':13} {item['name']}")


@app.command()
def cancel(remediation: RemediationId) -> None:
    """Cancel a remediation and the audits that it started."""
    with connect() as client:
        client.cancel_remediation(remediation)
    exit_codes.err.print("cancelled", style="dim")


@app.command()
def report(
    remediation: RemediationId,
    form: Annotated[Format, typer.Option("--format", help="json is for programs, markdown for reading.")] = (
        Format.MARKDOWN
    ),
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write to this file.")] = None,
) -> None:
    """Fetch a remediation's report: before and after, side by side."""
    with connect() as client:
        body = client.remediation_report(remediation, form.value)
    hand_over(body, out)


@app.command()
def delete(remediation: RemediationId) -> None:
    """Delete the new model; its digest, its record and its report stay."""
    with connect() as client:
        client.delete_model(remediation)
    exit_codes.err.print("deleted", style="dim")


@app.command()
def ladder() -> None:
    """Show the recipes that the method auto tries, in order (LETHE_REMEDIATION_LADDER)."""
    with connect() as client:
        steps = client.get("/v1/remediations/ladder")["steps"]
    for number, step in enumerate(steps, 1):
        own = ", ".join(f"{name}={value}" for name, value in step["hyperparameters"].items())
        typer.echo(f"{number:2}  {step['method']:8} {step['loss'] or '':8} {own}".rstrip())
