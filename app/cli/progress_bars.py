"""Progress bars on a terminal."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def progress_bars(console: Console) -> Progress:
    """Bars that vanish at the end; a console that is not a terminal shows none. Each task needs a field `stage`."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[stage]}", style="dim", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
