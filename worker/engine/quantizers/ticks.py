"""Progress of quantizing, counted in modules."""

from collections.abc import Callable


class Ticks:
    """Called once per module that is done; `alive` in between, by methods that take long for the first one."""

    def __init__(self, progress: Callable[[int, int], None], total: int) -> None:
        self.done = 0
        self._progress, self._total = progress, total

    def __call__(self) -> None:
        """One more module is done. Raises what the progress callback raises, to stop."""
        self.done += 1
        self.alive()

    def alive(self) -> None:
        """Nothing new, but not stuck; may raise to stop, too."""
        self._progress(self.done, self._total)
