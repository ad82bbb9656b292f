"""`lethe audit`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from app.catalog.metrics import METRICS
from app.catalog.plans import split
from app.cli import exit_codes
from app.cli.connect import connect
from app.cli.progress import follow
from app.judgement.policy import read_policy
from app.reports.rendering import terminal

app = typer.Typer(help="Audits: submit, follow, read.", no_args_is_help=True)

AuditId = Annotated[str, typer.Argument(help="The audit's id.")]


@app.command()
def submit(
    original: Annotated[
        str, typer.Option(help="Checkpoint before unlearning: a path on the service's machine, an id or a digest.")
    ],
    unlearned: Annotated[str, typer.Option(help="Checkpoint that claims to have forgotten.")],
    forget_set: Annotated[str, typer.Option(help="Id or digest of a forget set.")],
    retrained: Annotated[str | None, typer.Option(help="Checkpoint that never saw the forget set.")] = None,
    plan: Annotated[str | None, typer.Option(help="quick, paper, deploy, or precisions separated by commas.")] = None,
    metrics: Annotated[str | None, typer.Option(help=f"Metrics, separated by commas, of {', '.join(METRICS)}.")] = None,
    policy: Annotated[
        Path | None, typer.Option(help="JSON file with thresholds that differ from the defaults.")
    ] = None,
    artifact: Annotated[
        list[str] | None,
        typer.Option(help="A quantized checkpoint made from the unlearned one, audited as it is; repeatable."),
    ] = None,
    original_artifact: Annotated[
        list[str] | None,
        typer.Option(help="The original in the same format, to measure the artifacts against; repeatable."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="A name for lists and reports.")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key and request give the same audit.")] = None,
    wait_: Annotated[bool, typer.Option("--wait", help="Then wait for it to end, as `audit wait` does.")] = False,
) -> None:
    """Submit an audit. Prints its id."""
    body: dict[str, Any] = {"original": original, "unlearned": unlearned, "forget_set": forget_set}
    body |= {key: value for key, value in (("retrained", retrained), ("name", name)) if value is not None}
    wanted = {"precisions": plan, "metrics": metrics}
    body["plan"] = {key: split(value) for key, value in wanted.items() if value is not None}
    body["artifacts"] = [{"uri": uri, "of": "unlearned"} for uri in artifact or ()]
    body["artifacts"] += [{"uri": uri, "of": "original"} for uri in original_artifact or ()]
    if policy is not None:
        body["policy"] = read_policy(policy).model_dump(mode="json", exclude_unset=True)
    with connect() as client:
        audit = client.submit(body, idempotency_key)
        for metric, why in audit["plan"]["left_out"].items():
            exit_codes.err.print(f"{metric} is left out: {why}", style="yellow")
        missing = [metric for metric in audit["plan"]["left_out"] if metric in audit["plan"]["metrics"]]
        if missing := [metric for metric in missing if metric not in audit["policy"]["may_be_missing"]]:
            exit_codes.err.print(
                f"Without {', '.join(missing)} this audit cannot be robust, unless the policy's may_be_missing names"
                " them or --metrics leaves them out.",
                style="yellow",
            )
    typer.echo(audit["id"])
    if wait_:
        wait(audit["id"])


@app.command()
def wait(audit: AuditId) -> None:
    """Follow an audit to its end; the exit code is its verdict: 0 robust, 1 failed, 2 inconclusive or cancelled."""
    with connect() as client:
        ended = follow(client, audit)
        if ended["state"] == "cancelled":
            exit_codes.err.print("the audit was cancelled", style="yellow")
            raise typer.Exit(exit_codes.INCONCLUSIVE)
        report = client.report(audit)
    terminal.show(exit_codes.err, report)
    raise typer.Exit(exit_codes.EXIT_CODES[report.verdict])


@app.command()
def judge(
    audit: AuditId,
    policy: Annotated[
        Path | None, typer.Option(help="JSON file with thresholds that differ from the defaults.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="A name for lists and reports; by default the audit's.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key and request give the same new audit.")
    ] = None,
) -> None:
    """Judge a finished audit's stored scores again; nothing is measured anew. Prints the new audit's id; the exit code
    is the new verdict's: 0 robust, 1 failed, 2 inconclusive."""
    judged_by = None if policy is None else read_policy(policy).model_dump(mode="json", exclude_unset=True)
    body = {key: value for key, value in (("policy", judged_by), ("name", name)) if value is not None}
    with connect() as client:
        made = client.judge(audit, body, idempotency_key)
        report = client.report(made["id"])
    typer.echo(made["id"])
    terminal.show(exit_codes.err, report)
    raise typer.Exit(exit_codes.EXIT_CODES[report.verdict])


@app.command()
def show(
    audit: AuditId, as_json: Annotated[bool, typer.Option("--json", help="Print it as the API returns it.")] = False
) -> None:
    """Show an audit with its evaluations."""
    with connect() as client:
        found = client.get(f"/v1/audits/{audit}")
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(f"{found['id']}  {found['name']}: {found['state']}{' ' + found['verdict'] if found['verdict'] else ''}")
    for part in found["parts"]:
        at = f"{part['stage']} {part['done']}/{part['total']}" if part["state"] == "running" and part["stage"] else ""
        error = f"{part['error_code']}: {part['error_detail']}" if part["error_code"] else ""
        shared = "shared" if part["reused"] else ""
        typer.echo(f"  {part['role']:10} {part['precision']:24} {part['state']:10} {at}{error}{shared}".rstrip())
    if found["judged_again_from"]:
        typer.echo(f"judged again from {found['judged_again_from']}")
    for judgement in found["judgements"]:
        typer.echo(f"judged again by {judgement}")


@app.command("list")
def list_(
    state: Annotated[str | None, typer.Option(help="queued, running, finished, cancelled")] = None,
    verdict: Annotated[
        str | None, typer.Option(help="robust, recovered, not_forgotten, collapsed, inconclusive")
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Id or digest of a checkpoint in it.")] = None,
    limit: Annotated[int, typer.Option(help="Show at most this many.", min=1, max=100)] = 50,
) -> None:
    """List audits, newest first."""
    with connect() as client:
        found = client.get("/v1/audits", state=state, verdict=verdict, checkpoint=checkpoint, limit=limit)
    for item in found["items"]:
        typer.echo(f"{item['id']}  {item['state']:9} {item['verdict'] or '':13} {item['name']}")


@app.command()
def cancel(audit: AuditId) -> None:
    """Cancel an audit; evaluations that another audit needs continue."""
    with connect() as client:
        client.cancel(audit)
    exit_codes.err.print("cancelled", style="dim")
