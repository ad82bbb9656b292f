"""`lethe forget-set`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli import exit_codes
from app.cli.connect import connect
from app.forget_sets import bundle

app = typer.Typer(help="Forget sets: MUSE bundles.", no_args_is_help=True)


@app.command()
def add(
    directory: Annotated[Path, typer.Argument(help="A folder in MUSE's layout (knowmem/, verbmem/, privleak/, raw/).")],
    name: Annotated[str | None, typer.Option(help="A name; by default the folder's.")] = None,
    on_server: Annotated[
        bool,
        typer.Option("--on-server", help="Read the folder on the service's machine; upload nothing."),
    ] = False,
) -> None:
    """Upload a forget set, or register one on the service's machine. Prints its id."""
    with connect() as client:
        if on_server:
            made = client.register_forget_set(str(directory), name)
        else:
            files = bundle.read_directory(directory)
            bundle.parse(files)  # so that a mistake is reported before anything is sent
            made = client.upload_forget_set(files, name or directory.resolve().name)
    exit_codes.err.print(", ".join(f"{file}: {count}" for file, count in made["counts"].items()), style="dim")
    for file, repeated in made["duplicates"].items():
        exit_codes.err.print(f"{file}: {len(repeated)} items repeat others and do not count", style="yellow")
    if made["ignored"]:
        exit_codes.err.print(f"not used: {', '.join(made['ignored'])}", style="dim")
    for metric in made["metrics"]:
        if not metric["available"]:
            exit_codes.err.print(f"{metric['metric']} is not available: {metric['reason']}", style="yellow")
        elif metric["derived"]:
            exit_codes.err.print(f"{metric['metric']} is derived: {metric['derived']}", style="yellow")
    typer.echo(made["id"])


@app.command("list")
def list_() -> None:
    """List forget sets, newest first."""
    with connect() as client:
        for item in client.get("/v1/forget-sets", limit=100)["items"]:
            typer.echo(f"{item['id']}  {_state(item):7}  {item['name']}  {item['digest'][:19]}")


@app.command()
def purge(forget_set: Annotated[str, typer.Argument(help="Its id.")]) -> None:
    """Delete a forget set's content; digest and counts stay."""
    with connect() as client:
        client.request("DELETE", f"/v1/forget-sets/{forget_set}")
    exit_codes.err.print("purged", style="dim")


def _state(item: Any) -> str:
    return "purged" if item["purged_at"] else "there"
