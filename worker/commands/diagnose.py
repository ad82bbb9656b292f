"""`lethe diagnose`: where a pair's update lives and what rounding does to it, without a service."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from app.catalog.plans import split
from app.cli import exit_codes
from app.evidence.diagnosis import DEFAULT_DIAGNOSED, check_diagnosable
from app.reports.rendering import diagnosis as explain
from app.reports.rendering import terminal
from app.reports.rendering.markdown import table

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command("lethe diagnose")
def diagnose(
    original: Annotated[Path, typer.Argument(help="Checkpoint directory before unlearning.")],
    unlearned: Annotated[Path, typer.Argument(help="Directory of the checkpoint that claims to have forgotten.")],
    precisions: Annotated[str, typer.Option(help="rtn precisions, bnb-nf4, bnb-fp4; separated by commas.")] = ",".join(
        DEFAULT_DIAGNOSED
    ),
    out: Annotated[
        Path | None, typer.Option(help="Write all modules here: JSON, or Markdown if it ends in .md.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many modules to show.", min=0)] = explain.TOP,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads for torch.", min=1)] = None,
) -> None:
    """Show from the weights alone where the update lives and what rounding does to it. It decides no verdict."""
    names = check_diagnosable(split(precisions))
    import torch

    from worker.engine.diagnosis import overlap

    if threads is not None:
        torch.set_num_threads(threads)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=exit_codes.err) as progress:
        task = progress.add_task("hashing", total=None)

        def show(stage: str, done: int, total: int) -> None:
            progress.update(task, description=stage, completed=done, total=total)

        found = overlap.diagnose(original, unlearned, names, show, device=device)
    terminal.show_diagnosis(exit_codes.out, found, top)
    if out is not None:
        text = explain.markdown(found, table) if out.suffix == ".md" else found.model_dump_json(by_alias=True, indent=1)
        out.write_text(text + "\n")
        exit_codes.err.print(f"diagnosis: {out}", style="dim")


def main() -> None:
    """`lethe diagnose`, to its end."""
    exit_codes.run(app, "lethe diagnose")
