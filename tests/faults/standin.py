"""`python -m tests.faults.standin`: the real worker with a stand-in for the engine, which starts in no time."""

import sys

from tests.support import scene
from worker.loop import runner
from worker.loop.celery_app import run_worker

# At import, because each process of the pool imports the main module anew.
runner._engine = lambda: scene.evaluate
runner._diagnosing = lambda: scene.diagnose

if __name__ == "__main__":
    sys.exit(run_worker())
