"""The progress of quantization, counted in modules."""

from collections.abc import Callable


class Ticks:
    """Called once per finished module; `alive` is called in between, by methods that take long for the first one."""

    def __init__(self, progress: Callable[[int, int], None], total: int) -> None:
        self.done = 0
        self._progress, self._total = progress, total

    def __call__(self) -> None:
        """One more module is done. Raises what the progress callback raises, to stop."""
        self.done += 1
        self.alive()

    def alive(self) -> None:
        """Report that work continues, without progress; may also raise to stop."""
        self._progress(self.done, self._total)
