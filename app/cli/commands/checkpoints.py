"""`lethe checkpoint`."""

from typing import Annotated

import typer

from app.cli.connect import connect

app = typer.Typer(help="Checkpoints on the service's machine.", no_args_is_help=True)


@app.command()
def add(
    path: Annotated[str, typer.Argument(help="A directory of safetensors below one of the service's allowed roots.")],
    name: Annotated[str | None, typer.Option(help="A name; by default the directory's.")] = None,
) -> None:
    """Register a checkpoint: it is checked and hashed now, not when an audit needs it. Prints its id."""
    with connect() as client:
        typer.echo(client.register_checkpoint(path, name)["id"])


@app.command("list")
def list_() -> None:
    """List checkpoints, newest first."""
    with connect() as client:
        for item in client.get("/v1/checkpoints", limit=100)["items"]:
            typer.echo(f"{item['id']}  {item['digest'][:19]}  {item['architecture']}  {item['name']}  {item['uri']}")
