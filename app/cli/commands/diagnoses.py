"""`lethe diagnosis`: diagnoses made by the service; `lethe diagnose` works without one."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from app.catalog.plans import split
from app.cli import exit_codes
from app.cli.connect import connect
from app.cli.progress_bars import progress_bars
from app.client import Client
from app.evidence.diagnosis import DEFAULT_DIAGNOSED, Diagnosis
from app.reports.rendering import diagnosis as explain
from app.reports.rendering import terminal

app = typer.Typer(help="Diagnoses made by the service: submit, follow, read.", no_args_is_help=True)

DiagnosisId = Annotated[str, typer.Argument(help="The diagnosis's id.")]


@app.command()
def submit(
    original: Annotated[
        str, typer.Option(help="Checkpoint before unlearning: a path on the service's machine, an id or a digest.")
    ],
    unlearned: Annotated[str, typer.Option(help="Checkpoint that claims to have forgotten.")],
    precisions: Annotated[str, typer.Option(help="rtn precisions, bnb-nf4, bnb-fp4; separated by commas.")] = ",".join(
        DEFAULT_DIAGNOSED
    ),
    wait_: Annotated[bool, typer.Option("--wait", help="Then wait for it to end, as `diagnosis wait` does.")] = False,
) -> None:
    """Have a pair's weights compared by a worker. Prints the diagnosis's id."""
    with connect() as client:
        made = client.diagnose({"original": original, "unlearned": unlearned, "precisions": split(precisions)})
    typer.echo(made["id"])
    if wait_:
        wait(made["id"])


@app.command()
def wait(diagnosis: DiagnosisId) -> None:
    """Follow a diagnosis to its end and show it. Exit code 0, or 2 when it failed."""
    with connect() as client:
        _show(_follow(client, diagnosis), explain.TOP)


@app.command()
def show(
    diagnosis: DiagnosisId,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as the API returns it.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write its result here, as JSON.")] = None,
    top: Annotated[int, typer.Option(help="How many modules to show.", min=0)] = explain.TOP,
) -> None:
    """Show a diagnosis as it stands."""
    with connect() as client:
        found = client.diagnosis(diagnosis)
    if out is not None and found["result"] is not None:
        out.write_text(json.dumps(found["result"], indent=1) + "\n")
        exit_codes.err.print(f"diagnosis: {out}", style="dim")
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _show(found, top)


def _follow(client: Client, diagnosis: str) -> Any:
    with progress_bars(exit_codes.err) as progress:
        task = progress.add_task("diagnosis", stage="")

        def update(found: Any) -> None:
            stage = found["stage"] or found["state"]
            progress.update(task, total=found["total"] or None, completed=found["done"], stage=stage)

        return client.wait_diagnosis(diagnosis, update)


def _show(found: Any, top: int) -> None:
    if found["result"] is not None:
        terminal.show_diagnosis(exit_codes.out, Diagnosis.model_validate(found["result"]), top)
        return
    typer.echo(f"{found['id']}: {found['state']}")
    if found["error_code"]:
        exit_codes.err.print(f"{found['error_code']}: {found['error_detail']}", style="red")
        raise typer.Exit(exit_codes.INCONCLUSIVE)
