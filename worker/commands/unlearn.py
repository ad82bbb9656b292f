"""`lethe unlearn`: make a model forget right here, without a service."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from app.catalog.methods import summaries
from app.catalog.recipes import LOSSES, Recipe, check_texts, recipe
from app.cli import exit_codes
from app.cli.hyperparameters import apply_options
from app.cli.progress_bars import progress_bars
from app.errors import FieldProblem, InvalidRequest
from app.evidence.unlearning import LossPoint, Unlearned
from app.forget_sets import bundle

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command("lethe unlearn")
def unlearn(
    original: Annotated[Path, typer.Argument(help="Directory of the checkpoint before unlearning.")],
    forget_set: Annotated[Path, typer.Option(help="A folder in MUSE's layout, with raw/forget and raw/retain.")],
    out: Annotated[Path, typer.Option(help="A new directory for the unlearned checkpoint.")],
    method: Annotated[str, typer.Option(help=summaries())] = "sure",
    loss: Annotated[str, typer.Option(help=", ".join(LOSSES))] = "npo_gdr",
    given: Annotated[
        list[str] | None,
        typer.Option("--set", help="A hyperparameter, such as alpha=8 or stop.every=5; repeatable."),
    ] = None,
    hyperparameters: Annotated[Path | None, typer.Option(help="JSON file with hyperparameters.")] = None,
    work: Annotated[
        Path | None, typer.Option(help="Directory for training states; the same command resumes from them.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: the GPU when there is one.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads for torch.", min=1)] = None,
) -> None:
    """Unlearn a forget set from a checkpoint, without a service. Then audit it with `lethe run`."""
    chosen = _recipe(method, loss, hyperparameters, given or [])
    forgotten = bundle.parse(bundle.read_directory(forget_set))
    check_texts(chosen, forgotten.info().counts)
    import torch

    from worker.engine.unlearning.unlearn import unlearn as run

    if device not in (None, "cpu") and not torch.cuda.is_available():
        raise InvalidRequest("invalid_request", f"--device {device}: torch finds no GPU here; use cpu")
    if threads is not None:
        torch.set_num_threads(threads)
    with progress_bars(exit_codes.err) as progress:
        task = progress.add_task("loading", stage="", total=None)
        last_loss = ""

        def show(stage: str, done: int, total: int) -> None:
            progress.update(
                task, description=stage, stage=last_loss if stage == "train" else "", completed=done, total=total
            )

        def show_loss(point: LossPoint) -> None:
            nonlocal last_loss
            retain = "" if point.retain is None else f", retain {point.retain:.3f}"
            last_loss = f"loss {point.loss:.3f} (forget {point.forget:.3f}{retain})"

        record = run(original, out, forgotten, chosen, work=work, device=device, progress=show, on_loss=show_loss)
    last = record.losses[-1] if record.losses else None
    exit_codes.out.print(
        f"{method} over {loss}: stopped at step {record.steps} of {record.steps_planned} ({record.stopped})"
    )
    exit_codes.out.print(
        f"{record.parameters_changed:,} of {record.parameters_total:,} parameters changed"
        + ("" if last is None else f"; last loss {last.loss:.3f}")
    )
    for line in last_reading(record):
        exit_codes.out.print(line)
    exit_codes.out.print(f"{record.digest}  {out}")


def last_reading(record: Unlearned) -> list[str]:
    """The stop rule's reading of the written model, as lines; the last reading may be of a state that was dropped."""
    of_this_step = [reading for reading in record.readings if reading.step == record.steps]
    shares = [reading.model_dump(exclude={"step"}, exclude_none=True) for reading in of_this_step]
    return ["watched half: " + ", ".join(f"{name} {share:.2f}" for name, share in found.items()) for found in shares]


def _recipe(method: str, loss: str, file: Path | None, given: list[str]) -> Recipe:
    """The recipe from a file and from options; options take precedence.

    Raises:
        InvalidRequest: with the hyperparameters that are wrong.
    """
    chosen: dict[str, Any] = {}
    if file is not None:
        try:
            chosen = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InvalidRequest("invalid_request", f"--hyperparameters {file} is not JSON: {error}") from error
        if not isinstance(chosen, dict):
            raise InvalidRequest(
                "invalid_request", f"--hyperparameters {file}: expected an object with hyperparameters"
            )
    try:
        return recipe(method, loss, apply_options(chosen, given))
    except ValidationError as error:
        problems = [FieldProblem(field=".".join(map(str, e["loc"])), message=e["msg"]) for e in error.errors()]
        first = problems[0]
        raise InvalidRequest(
            "invalid_request", f"hyperparameter {first.field}: {first.message}", errors=problems
        ) from error


def main() -> None:
    """`lethe unlearn`, to its end."""
    exit_codes.run(app, "lethe unlearn")
