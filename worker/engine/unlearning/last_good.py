"""The last good state of what is trained, to go back to when training goes wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

_FILE: Final = "last_good.safetensors"


class LastGood:
    """Copies of the trained parameters, in the CPU's memory; step 0: none yet, the original is all there is."""

    def __init__(self, trained: Mapping[str, Tensor]) -> None:
        self._trained = trained
        self._values: dict[str, Tensor] = {}
        self.step = 0

    @property
    def bytes(self) -> int:
        """Memory that the copies take."""
        return sum(value.nbytes for value in self._values.values())

    @torch.no_grad()
    def take(self, step: int) -> None:
        """The parameters, as they are after this step, are good."""
        self._values = {name: parameter.to("cpu", copy=True) for name, parameter in self._trained.items()}
        self.step = step

    @torch.no_grad()
    def restore(self) -> None:
        """Put them back."""
        for name, value in self._values.items():
            self._trained[name].copy_(value)

    def save(self, folder: Path) -> None:
        """As a part of a state to go on from."""
        if self.step:
            save_file(self._values, folder / _FILE, metadata={"step": str(self.step)})

    def load(self, folder: Path) -> None:
        """The inverse of `save`."""
        if (folder / _FILE).exists():
            self._values = load_file(folder / _FILE)
            with safe_open(folder / _FILE, "pt") as file:
                self.step = int(file.metadata()["step"])
