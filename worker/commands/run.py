"""`lethe run`: an audit right here, without a service, database or broker."""

from pathlib import Path
from typing import Annotated

import typer

from app.catalog.metrics import DEFAULT_METRICS, METRICS
from app.catalog.plans import DEFAULT_PLAN, split
from app.cli import exit_codes
from app.cli.progress_bars import progress_bars
from app.errors import AppError, InvalidRequest
from app.evidence.evaluation import Role
from app.forget_sets import bundle
from app.judgement.policy import Policy, read_policy
from app.reports.rendering import terminal
from app.reports.rendering.formats import write

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command("lethe run")
def run(
    original: Annotated[Path, typer.Option(help="Directory of the checkpoint before unlearning.")],
    unlearned: Annotated[Path, typer.Option(help="Directory of the checkpoint that claims to have forgotten.")],
    forget_set: Annotated[Path, typer.Option(help="A folder in MUSE's layout.")],
    retrained: Annotated[
        Path | None, typer.Option(help="Directory of a checkpoint that never saw the forget set.")
    ] = None,
    plan: Annotated[
        str, typer.Option(help="quick, paper, deploy, or precisions separated by commas (`lethe precisions`).")
    ] = DEFAULT_PLAN,
    metrics: Annotated[str, typer.Option(help=f"Metrics, separated by commas, of {', '.join(METRICS)}.")] = ",".join(
        DEFAULT_METRICS
    ),
    policy: Annotated[
        Path | None, typer.Option(help="JSON file with thresholds that differ from the defaults.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the report here: JSON, or Markdown if it ends in .md.")
    ] = None,
    calibration_file: Annotated[
        Path | None,
        typer.Option(help="Texts for precisions that end in @file; UTF-8.", envvar="LETHE_CALIBRATION_FILE"),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: the GPU when there is one.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads for torch.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed for everything random.", min=0, max=2**32 - 1)] = 0,
    artifact: Annotated[
        list[Path] | None,
        typer.Option(help="A quantized checkpoint made from the unlearned one, audited as it is; repeatable."),
    ] = None,
    original_artifact: Annotated[
        list[Path] | None,
        typer.Option(help="The original in the same format, to measure the artifacts against; repeatable."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="A name for the report.")] = None,
) -> None:
    """Audit a pair right here, without a service. Exit code: 0 robust, 1 failed, 2 inconclusive, 3 usage, 4 error."""
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise InvalidRequest("invalid_request", f"--out {out}: give a file in a directory that exists")
    judged_by = Policy() if policy is None else read_policy(policy)
    fixed = judged_by.digest()
    forgotten = bundle.parse(bundle.read_directory(forget_set))
    exit_codes.err.print(f"policy: {fixed}", style="dim", soft_wrap=True)
    if forgotten.ignored:
        exit_codes.err.print(f"not used of the forget set: {', '.join(forgotten.ignored)}", style="dim", soft_wrap=True)
    import torch

    from worker.engine.audit import Artifact, audit

    shipped = [Artifact(path) for path in artifact or ()]
    shipped += [Artifact(path, "original") for path in original_artifact or ()]

    if device not in (None, "cpu") and not torch.cuda.is_available():
        raise InvalidRequest("invalid_request", f"--device {device}: torch finds no GPU here; use cpu")
    if threads is not None:
        torch.set_num_threads(threads)
    with progress_bars(exit_codes.err) as progress:
        task = progress.add_task("loading", stage="", total=None)

        def show(role: Role, precision: str, stage: str, done: int, total: int) -> None:
            progress.update(task, description=f"{role} {precision}", stage=stage, completed=done, total=total)

        report = audit(
            original,
            unlearned,
            forgotten,
            retrained=retrained,
            precisions=split(plan),
            metrics=split(metrics),
            policy=judged_by,
            device=device,
            seed=seed,
            name=name,
            progress=show,
            calibration_file=calibration_file,
            artifacts=shipped,
        )
    if not report.policy_digest == report.policy.digest() == fixed:
        raise AppError("internal", f"the report was judged by policy {report.policy_digest}, not by {fixed}")
    if out is not None:
        write(report, out)
    terminal.show(exit_codes.out, report)
    if out is not None:
        exit_codes.err.print(f"report: {out}", style="dim")
    raise typer.Exit(exit_codes.EXIT_CODES[report.verdict])


def main() -> None:
    """`lethe run`, to its end."""
    exit_codes.run(app, "lethe run")
