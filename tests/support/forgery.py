"""What the audited party does to its files, and how an audit of them ends."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from app.reports.model import AuditReport
from worker.engine.demo.build import Pair

ITEMS = 24
PLAN = ["full", "rtn-int4"]
POLICY = {"recovery_margin": 0.2, "corroboration_limit": 0.85}
"""Wide enough for so few items: the honest pair is robust. (By its truth ratio alone it retains 76 %.)"""


class Ended(NamedTuple):
    """How an audit ended."""

    code: int
    """The exit code."""
    report: AuditReport | None
    said: str
    """On the terminal; over HTTP, the refusal or the markdown."""

    @property
    def reasons(self) -> set[str]:
        """The codes of all reasons."""
        assert self.report is not None, self.said
        return {reason.code for judged in self.report.precisions for reason in judged.reasons} | {
            reason.code for reason in self.report.reasons
        }


Run = Callable[..., Ended]


class World(NamedTuple):
    """Who is audited, and on what."""

    pair: Pair
    bundle: Path


def edit(file: Path, **changes: object) -> None:
    """Change a JSON file."""
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | changes))


def reweigh(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change a checkpoint's tensors."""
    tensors = {name: tensor.clone() for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})


def frequent_tokens(world: World, count: int = 40) -> list[int]:
    """Tokens that an answer of the world can hardly do without."""
    tokenizer = Tokenizer.from_file(str(world.pair.original / "tokenizer.json"))
    texts = json.loads((world.bundle / "verbmem" / "forget.json").read_text())
    ids = [i for text in texts for i in tokenizer.encode(text["gt"]).ids]
    return sorted(set(ids), key=ids.count, reverse=True)[:count]
