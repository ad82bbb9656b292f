"""`lethe keys`: API keys, on the service's own machine, because it opens the database."""

from typing import Annotated

import typer

from app.cli import exit_codes
from app.http.scopes import Scope

app = typer.Typer(help="API keys; needs access to the service's database.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who it is for.")],
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="What it may do; repeatable. Default: audits:write and audits:read."),
    ] = None,
) -> None:
    """Create a key and print it: it is not stored and cannot be shown again."""
    from app.database import migrate
    from app.database.engine import transaction
    from app.http import auth

    migrate.upgrade()
    with transaction() as session:
        key, secret = auth.create_key(session, name, scope or [Scope.AUDITS_WRITE, Scope.AUDITS_READ])
    exit_codes.err.print(f"{key.id}  {', '.join(key.scopes)}", style="dim")
    typer.echo(secret)


@app.command("list")
def list_() -> None:
    """List keys, newest first."""
    from app.database.engine import reading
    from app.http import auth

    with reading() as session:
        for key in auth.list_keys(session):
            state = "revoked" if key.revoked_at else "valid"
            typer.echo(f"{key.id}  {key.prefix}…  {state:7}  {', '.join(key.scopes):40}  {key.name}")


@app.command()
def revoke(key: Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")]) -> None:
    """Revoke a key at once and for good."""
    from app.database.engine import transaction
    from app.http import auth

    with transaction() as session:
        auth.revoke_key(session, key)
    exit_codes.err.print("revoked", style="dim")
