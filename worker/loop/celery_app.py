"""The worker as a Celery application: configuration and entry point."""

import importlib
import logging
import os
import socket
from types import ModuleType
from typing import Any

from celery import Celery, signals
from celery.loaders.app import AppLoader

from app.logs import configure_logs
from app.queue import QUEUE, broker_options
from app.settings import settings
from worker.loop import processes, reconcile


class Loader(AppLoader):  # type: ignore[misc]
    """Celery's own loader puts the current directory first on the path, where a folder `worker/` would be imported."""

    def import_from_cwd(self, module: str, imp: Any = None, package: str | None = None) -> ModuleType:
        """Import as everything else does."""
        return importlib.import_module(module, package)


# No fixups: Django's also puts the current directory on the path.
app = Celery("lethe", loader=Loader, fixups=[], include=["worker.loop.tasks"])
app.conf.update(
    **broker_options(),
    task_default_queue=QUEUE,
    task_ignore_result=True,
    task_serializer="json",
    accept_content=["json"],
    # The database decides who works on what, so a message may be lost or repeated. If a message were kept until its
    # task ends, Redis would deliver it again after an hour.
    task_acks_late=False,
    worker_prefetch_multiplier=1,
    worker_disable_prefetch=settings().resolved_broker_url.startswith("redis"),
    # CUDA does not survive a fork; a spawned process imports everything again, which takes longer than billiard's 4 s.
    worker_pool="prefork",
    worker_pool_start_method="spawn",
    worker_proc_alive_timeout=120.0,
    worker_lost_wait=1.0,
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    worker_redirect_stdouts=False,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
)


def run_worker(concurrency: int | None = None, loglevel: str = "INFO") -> int:
    """Work until SIGTERM or SIGINT; returns the exit code.

    Args:
        concurrency: Evaluations at once; by default settings().worker_concurrency.
        loglevel: A level of Python's logging.
    """
    if concurrency is not None:
        # Through the environment, because the pool's processes read it too.
        os.environ["LETHE_WORKER_CONCURRENCY"] = str(concurrency)
        settings.cache_clear()
    os.environ["LETHE_WORKER_LOGLEVEL"] = loglevel
    worker = app.Worker(
        hostname=f"lethe-{os.getpid()}@{socket.gethostname()}",
        concurrency=settings().worker_concurrency,
        loglevel=loglevel,
        optimization="fair",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def _set_up_logging(**kwargs: Any) -> None:
    configure_logs()
    logging.getLogger().setLevel(os.environ.get("LETHE_WORKER_LOGLEVEL", "INFO"))
    # A line for each ring is noise; the evaluations log what happens.
    for name in ("celery.worker.strategy", "celery.app.trace", "celery.worker.consumer.connection"):
        logging.getLogger(name).setLevel(logging.WARNING)


signals.setup_logging.connect(_set_up_logging)
signals.worker_ready.connect(processes.on_ready)
signals.worker_ready.connect(reconcile.on_ready)
signals.worker_shutting_down.connect(processes.on_shutting_down)
signals.worker_shutting_down.connect(reconcile.on_shutting_down)
signals.worker_process_init.connect(processes.on_process_init)
