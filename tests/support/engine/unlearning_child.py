"""An unlearning that kills itself.

`python -m tests.support.engine.unlearning_child ORIGINAL OUT WORK METHOD LOSS STOP DIE`:
at the step DIE (0: never) the process ends as by `kill -9`, in the middle of training.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from app.evidence.unlearning import LossPoint
from tests.support.engine.unlearning import raw_bundle, small
from worker.engine.unlearning.unlearn import unlearn


def main() -> None:
    torch.set_num_threads(1)
    original, out, work, method, loss, hyperparameters, die = sys.argv[1:]

    def on_loss(point: LossPoint) -> None:
        if point.step == int(die):
            os.kill(os.getpid(), signal.SIGKILL)

    chosen = small(method, loss, **json.loads(hyperparameters))
    record = unlearn(Path(original), Path(out), raw_bundle(), chosen, work=Path(work), on_loss=on_loss)
    print(record.digest)


if __name__ == "__main__":
    main()
