"""`python -m tests.bench.diagnosis`: peak memory and time of `lethe diagnose` on two checkpoints of 1 GB."""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.support.engine.pairs import write_pair

_SCRIPT = """
import sys
from worker.commands.diagnose import app
app(sys.argv[1:], standalone_mode=False)
print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1024, help="size of each checkpoint")
    parser.add_argument("--precisions", default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        pair = write_pair(Path(folder), options.megabytes)
        args = [*map(str, pair), "--top", "0", "--threads", "1"]
        args += ["--precisions", options.precisions] if options.precisions else []
        started = time.perf_counter()
        ran = subprocess.run([sys.executable, "-c", _SCRIPT, *args], stdout=subprocess.PIPE, text=True, check=True)
        wall = time.perf_counter() - started
    print(ran.stdout.partition("VmHWM")[0])
    peak = int(ran.stdout.split("VmHWM:")[1].split()[0]) // 1024
    print(f"2 x {options.megabytes} MB: peak {peak} MB of memory, {wall:.0f} s on one thread")


if __name__ == "__main__":
    main()
