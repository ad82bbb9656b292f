"""`lethe`: the command line. Exit codes: 0 robust (or done), 1 failed, 2 inconclusive, 3 usage, 4 service error."""

import typer

from app import __version__
from app.cli import exit_codes
from app.cli.commands import audits, checkpoints, demo, diagnoses, forget_sets, keys, remediations, reports, services
from app.cli.commands.doctor import doctor

app = typer.Typer(
    name="lethe",
    help="Audit whether an unlearned language model remembers again once it is quantized.\n\n"
    "Exit codes of `audit wait`, `remediation wait` and `run`: 0 robust, 1 failed (recovered, not forgotten, "
    "collapsed), 2 inconclusive, 3 usage, 4 service error.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(services.dev)
app.command()(services.serve)
app.command(context_settings=services.PASSED_ON, add_help_option=False)(services.worker)
app.command(context_settings=services.PASSED_ON, add_help_option=False)(services.run)
app.command(context_settings=services.PASSED_ON, add_help_option=False)(services.precisions)
app.command(context_settings=services.PASSED_ON, add_help_option=False)(services.diagnose)
app.command(context_settings=services.PASSED_ON, add_help_option=False)(services.unlearn)
app.add_typer(forget_sets.app, name="forget-set")
app.add_typer(checkpoints.app, name="checkpoint")
app.add_typer(audits.app, name="audit")
app.add_typer(diagnoses.app, name="diagnosis")
app.add_typer(reports.app, name="report")
app.command()(remediations.remediate)
app.add_typer(remediations.app, name="remediation")
app.add_typer(keys.app, name="keys")
app.command()(doctor)
app.command()(demo.demo)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lethe {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Options of `lethe` itself."""


def main() -> None:
    """`lethe`, to its end."""
    exit_codes.run(app)
