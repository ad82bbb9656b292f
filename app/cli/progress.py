"""Following an audit or a remediation with progress bars."""

from typing import Any

from rich.progress import TaskID

from app.cli import exit_codes
from app.cli.progress_bars import progress_bars
from app.client import Client


def follow(client: Client, audit_id: str, title: str = "evaluations") -> Any:
    """Wait for an audit, showing how many evaluations are done and what runs; returns the audit."""
    with progress_bars(exit_codes.err) as progress:
        whole = progress.add_task(title, stage="")
        running: dict[str, TaskID] = {}

        def show(audit: Any) -> None:
            # A part that several roles share (an original audited against itself) is one evaluation.
            parts = {part["evaluation"]: part for part in audit["parts"]}
            done = [part for part in parts.values() if part["state"] not in ("queued", "running")]
            progress.update(whole, total=len(parts), completed=len(done), stage=audit["state"])
            for key, part in parts.items():
                if part["state"] == "running":
                    if key not in running:
                        running[key] = progress.add_task(f"  {part['role']} {part['precision']}", stage="")
                    progress.update(
                        running[key], total=part["total"] or None, completed=part["done"], stage=part["stage"] or ""
                    )
                elif key in running:
                    progress.remove_task(running.pop(key))

        return client.wait(audit_id, show)


def follow_remediation(client: Client, remediation_id: str) -> Any:
    """Wait for a remediation, showing its stage, its steps and its loss; returns the remediation."""
    with progress_bars(exit_codes.err) as progress:
        task = progress.add_task("waiting for a worker", total=None, stage="")

        def show(row: Any) -> None:
            trial = row["trials"][-1]
            of = f"trial {trial['position'] + 1} of {len(row['recipes'])}, " if len(row["recipes"]) > 1 else ""
            losses = trial["losses"]
            loss = f"loss {losses[-1]['loss']:.4g}" if losses and row["stage"] != "audit" else ""
            what = f"{of}{trial['recipe']['method']} {trial['recipe']['loss']}: {row['stage'] or row['state']}"
            progress.update(task, description=what, total=row["total"] or None, completed=row["done"], stage=loss)

        return client.wait_remediation(remediation_id, show)
