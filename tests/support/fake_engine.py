"""`python -m tests.support.fake_engine`: the real worker with a stand-in for the engine, which starts in no time."""

import sys

from tests.support import worker_service
from worker.loop import runner
from worker.loop.celery_app import run_worker

# At import, because each process of the pool imports the main module anew.
runner._engine = lambda: worker_service.evaluate
runner._diagnosing = lambda: worker_service.diagnose

if __name__ == "__main__":
    sys.exit(run_worker())
