"""`python -m tests.support.stand_ins.worker`: the real worker with a stand-in for the engine; it starts in no time."""

import sys

from tests.support.stand_ins import quick
from worker.loop import runner
from worker.loop.celery_app import run_worker

# At import, because each process of the pool imports the main module anew.
runner._engine = lambda: quick.evaluate
runner._diagnosing = lambda: quick.diagnose

if __name__ == "__main__":
    sys.exit(run_worker())
