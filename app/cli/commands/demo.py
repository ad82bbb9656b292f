"""`lethe demo`: a whole audit of two tiny pairs that it trains itself, through the same HTTP API as everyone's."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.table import Table
from rich.text import Text

from app import launch
from app.catalog.methods import UNLEARNING_METHODS
from app.catalog.metrics import DEFAULT_METRICS, FORGET_METRICS
from app.catalog.plans import check_names, split
from app.cli import exit_codes
from app.cli.commands.remediations import show_report
from app.cli.progress import follow, follow_remediation
from app.cli.progress_bars import progress_bars
from app.client import Client
from app.errors import Unavailable
from app.forget_sets import bundle
from app.judgement.figures import whole_percent
from app.judgement.verdict import Outcome
from app.remediations.report import RemediationReport
from app.reports.model import AuditReport
from app.reports.rendering import terminal
from app.settings import Settings

MATCHING = "rtn-int4"
PLAN = ["full", "rtn-int8", MATCHING, "bnb-nf4"]
EXPECTED: dict[str, Outcome] = {"native": "recovered", "ordinary": "robust"}

WHAT_THIS_IS = (
    "Both pairs are tiny models, trained on invented articles and then made to forget some of them by NPO "
    "in small steps; the native pair's original had its weights rounded to a 4-bit grid first, as in releases that "
    "were trained for 4 bits, the ordinary pair's had not. This shows the mechanism (small steps on a grid are rounded "
    "away when the same grid is applied again), not how often real models fail. The native original was then unlearned "
    "again by SURE (in its most salient modules alone) and by LoRA, in larger steps."
)


class Shown(NamedTuple):
    """One pair's audit in the demo."""

    seed: int
    pair: str
    audit: str
    report: AuditReport


class Again(NamedTuple):
    """The native original, unlearned again."""

    seed: int
    method: str
    report: RemediationReport


def demo(
    seed: Annotated[list[int] | None, typer.Option(help="Seed of the tiny world; repeatable.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Where trained worlds are kept.")] = None,
    out: Annotated[Path, typer.Option(help="Where reports and the demo service's data go.")] = Path("demo-output"),
    plan: Annotated[
        str | None, typer.Option(help="Another plan: paper, deploy, or precisions separated by commas.")
    ] = None,
) -> None:
    """Train a tiny world, start the service, audit two pairs over HTTP, remediate the failing one (by SURE and by
    LoRA), show all verdicts, and stop the service.

    Exit code: 0 when the native pair is `recovered`, the ordinary one `robust`, and both remediations `robust`, else 1.
    With another plan, which has no expected verdicts and no remediation: 0 when every evaluation has scores and proof.
    """
    from app.cli.embedded import embedded, free_port

    precisions = PLAN if plan is None else check_names(split(plan), DEFAULT_METRICS).precisions
    seeds = seed or [0]
    cache = (cache or _cache_dir()).resolve()
    out.mkdir(parents=True, exist_ok=True)
    worlds = [(s, _build(cache, s)) for s in seeds]
    service_dir = out / "service"
    shutil.rmtree(service_dir, ignore_errors=True)
    # The models are so small that two evaluations with one thread each make best use of two cores.
    wanted = Settings(
        data_dir=service_dir,
        database_url="",
        broker_url="",
        roots=[cache],
        port=free_port(),
        worker_concurrency=min(2, os.cpu_count() or 1),
        torch_threads=1,
        device="cpu",
    )
    shown: list[Shown] = []
    again: list[Again] = []
    exit_codes.err.print("starting the service …", style="dim")
    with embedded(wanted) as service, Client(service.url, service.key) as client:
        for number, world in worlds:
            audited = _audit_world(client, number, world, precisions, out)
            shown += audited
            if plan is None:
                failed_audit = next(item.audit for item in audited if item.pair == "native")
                again += _remediate(client, number, failed_audit, world["remediations"], out)
    if plan is not None:
        for item in shown:
            terminal.show_techniques(exit_codes.out, item.report)
        failed = any(evidence.failure for item in shown for evidence in item.report.evidence)
        raise typer.Exit(exit_codes.FAILED if failed else exit_codes.ROBUST)
    if len(seeds) > 1:
        terminal.wide(exit_codes.out, _over_seeds(shown, again))
    else:
        _compare(shown, again, out)
    as_expected = all(s.report.verdict == EXPECTED[s.pair] for s in shown)
    as_expected &= all(a.report.verdict == "robust" for a in again)
    if not as_expected:
        exit_codes.out.print(
            "This run did not show what the demo is made to show; the figures above are what it measured.",
            style="yellow",
        )
    raise typer.Exit(exit_codes.ROBUST if as_expected else exit_codes.FAILED)


def _cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lethe" / "demo"


def _build(cache: Path, seed: int) -> Any:
    """The tiny world's paths; trained by a process of its own, because this one never imports torch."""
    command = launch.command("worker.engine.demo.__main__", "--cache", str(cache), "--seed", str(seed))
    started = subprocess.Popen(command, env=launch.environment(), stdout=subprocess.PIPE, text=True)  # noqa: S603
    with progress_bars(exit_codes.err) as progress, started as child:
        tasks: dict[str, Any] = {}
        world = None
        assert child.stdout is not None
        for line in child.stdout:
            event = json.loads(line)
            if "stage" in event:
                stage = event["stage"]
                if stage not in tasks:
                    tasks[stage] = progress.add_task(f"seed {seed}: {stage}", stage="")
                progress.update(tasks[stage], completed=event["done"], total=event["total"])
            else:
                world = event
    if child.returncode or world is None:
        raise Unavailable(
            "api_ended", f"the tiny world could not be built: {' '.join(command)} ended with {child.returncode}"
        )
    return world


def _audit_world(client: Client, seed: int, world: Any, precisions: list[str], out: Path) -> list[Shown]:
    files = bundle.read_directory(Path(world["forget_set"]))
    forget_set = client.upload_forget_set(files, f"tiny world, seed {seed}")["id"]
    submitted = {
        pair: client.submit(
            {
                "name": f"{pair} pair, seed {seed}",
                "original": world[pair]["original"],
                "unlearned": world[pair]["unlearned"],
                "retrained": world[pair]["retrained"],
                "forget_set": forget_set,
                "plan": {"precisions": precisions},
            }
        )["id"]
        for pair in EXPECTED
    }
    shown = []
    for pair, audit_id in submitted.items():
        follow(client, audit_id, title=f"seed {seed}: auditing the {pair} pair")
        report = client.report(audit_id)
        for form, suffix in (("json", "json"), ("markdown", "md")):
            (out / f"report-{pair}-seed{seed}.{suffix}").write_bytes(client.report_body(audit_id, form))
        terminal.show(exit_codes.out, report)
        exit_codes.out.print()
        shown.append(Shown(seed, pair, audit_id, report))
    return shown


def _remediate(client: Client, seed: int, audit_id: str, recipes: list[Any], out: Path) -> list[Again]:
    """Unlearn the audit's original again by each recipe, side by side, and show before and after."""
    exit_codes.err.print(f"seed {seed}: unlearning the native original again, so that it survives …", style="dim")
    started = {body["method"]: client.remediate(audit_id, body)["id"] for body in recipes}
    done = []
    for method, remediation in started.items():
        ended = follow_remediation(client, remediation)
        if ended["state"] != "finished":
            raise Unavailable(
                "remediation_failed", f"the remediation by {method} {ended['state']}: {ended['sentence']}"
            )
        for form, suffix in (("json", "json"), ("markdown", "md")):
            (out / f"remediation-{method}-seed{seed}.{suffix}").write_bytes(
                client.remediation_report(remediation, form)
            )
        report = RemediationReport.model_validate_json(client.remediation_report(remediation, "json"))
        show_report(exit_codes.out, report)
        exit_codes.out.print()
        done.append(Again(seed, method, report))
    return done


def _compare(shown: list[Shown], again: list[Again], out: Path) -> None:
    """All verdicts side by side, what was constructed, and what to do next."""
    table = Table(title="Two pairs, one plan, one policy", title_justify="left", title_style="bold", pad_edge=False)
    for name in ("pair", "verdict", *(f"kept at {p}" for p in PLAN)):
        table.add_column(name)
    for item in shown:
        table.add_row(item.pair, terminal.verdict_name(item.report.verdict), *_kept(item.report))
    for made in again:
        table.add_row(
            f"native, {UNLEARNING_METHODS[made.method].title}",
            terminal.verdict_name(made.report.verdict),
            *_kept_by(made.report),
        )
    terminal.wide(exit_codes.out, table)
    exit_codes.out.print(
        "Kept: forget knowledge retained, VerbMem / KnowMem / PrivLeak, against the retrained model.", style="dim"
    )
    exit_codes.out.print()
    exit_codes.out.print(Text(WHAT_THIS_IS))
    exit_codes.out.print()
    seed = shown[0].seed
    exit_codes.out.print(
        f"Reports:   {out}/report-native-seed{seed}.md, {out}/report-ordinary-seed{seed}.md (and .json),"
    )
    exit_codes.out.print(f"           {out}/remediation-sure-seed{seed}.md, {out}/remediation-lora-seed{seed}.md")
    exit_codes.out.print(
        f"Try next:  LETHE_DATA_DIR={out}/service .venv/bin/lethe dev   this demo's service, with its audits"
    )
    exit_codes.out.print("           make demo-seeds                          three seeds, what happens in each")
    exit_codes.out.print("           lethe run --help                         audit your own pair, without a service")


def _kept(report: AuditReport) -> list[str]:
    cells = []
    for judged in report.precisions:
        kept = [metric.retained for metric in judged.metrics]
        cells.append(" / ".join(whole_percent(value) for value in kept))
    return cells


def _kept_by(report: RemediationReport) -> list[str]:
    """The same for the new model."""
    cells = []
    for at in report.precisions:
        kept = [metric.new.kept for metric in at.metrics if metric.metric in FORGET_METRICS]
        cells.append(" / ".join(whole_percent(value) for value in kept))
    return cells


def _over_seeds(shown: list[Shown], again: list[Again]) -> Table:
    table = Table(title="What happened with each seed", title_justify="left", title_style="bold", pad_edge=False)
    for name in ("seed", "pair", "verdict", *(f"kept at {p}" for p in PLAN), f"utility {MATCHING}"):
        table.add_column(name)
    for item in shown:
        utility = next((j.utility for j in item.report.precisions if j.precision == MATCHING), None)
        table.add_row(
            str(item.seed),
            item.pair,
            terminal.verdict_name(item.report.verdict),
            *_kept(item.report),
            whole_percent(utility),
        )
        for made in again:
            if made.seed == item.seed and item.pair == "native":
                at = next(at for at in made.report.precisions if at.precision == MATCHING)
                kept = next((m.new.kept for m in at.metrics if m.metric == "knowmem_retain"), None)
                table.add_row(
                    str(made.seed),
                    f"native, {UNLEARNING_METHODS[made.method].title}",
                    terminal.verdict_name(made.report.verdict),
                    *_kept_by(made.report),
                    whole_percent(kept),
                )
    return table
