"""The doorbell: tells the workers that there is something to claim, and carries nothing else.

The only place in `app` that names Celery. A lost ring costs a delay (workers look by themselves every
`settings().reconcile_seconds`), a superfluous one costs nothing.
"""

import json
import logging
import os
import time
import uuid
from functools import cache
from pathlib import Path
from queue import Empty
from typing import Any

from celery import Celery
from kombu.transport import filesystem

from app.settings import settings

QUEUE = "lethe"
DRAIN = "lethe.drain"

PENDING_ENOUGH = 8
"""This many unread messages in the filesystem broker wake every worker; more would only pile up."""
TIMEOUT_SECONDS = 1.0

log = logging.getLogger(__name__)


def ring() -> bool:
    """Wake the workers; call it after commit. Never raises; False when the broker could not be reached."""
    folder = _folder()
    try:
        if folder is not None and _pending(folder) >= PENDING_ENOUGH:
            return True
        _sender().send_task(DRAIN, queue=QUEUE, ignore_result=True, retry=False)
    except Exception as error:  # whatever the broker's client raises: the row is committed, workers will find it
        log.warning("the broker cannot be reached; workers will look by themselves: %s", type(error).__name__)
        return False
    return True


def broker_options() -> dict[str, Any]:
    """Celery settings that find the broker, the same for those who ring and those who answer."""
    folder = _folder()
    if folder is None:
        return {
            "broker_url": settings().resolved_broker_url,
            "broker_transport_options": {"socket_connect_timeout": TIMEOUT_SECONDS, "socket_keepalive": True},
        }
    messages, control = folder / "messages", folder / "control"
    for path in (messages, control):
        path.mkdir(parents=True, exist_ok=True)
    return {
        "broker_url": "filesystem://",
        "broker_transport": f"{__name__}:Transport",
        "broker_transport_options": {
            "data_folder_in": str(messages),
            "data_folder_out": str(messages),
            "control_folder": str(control),
            "polling_interval": 0.25,
        },
    }


class Channel(filesystem.Channel):
    """kombu's folder of messages, in which each appears whole: a worker that read half a message would crash."""

    def _put(self, queue: Any, payload: Any, **kwargs: Any) -> None:  # type: ignore[override]
        name = f"{time.time_ns()}_{uuid.uuid4()}.{queue}.msg"
        part = Path(self.data_folder_out) / f".{name}.part"
        part.write_text(json.dumps(payload))
        os.replace(part, Path(self.data_folder_out) / name)

    def _get(self, queue: Any, timeout: Any = None) -> Any:
        try:
            return super()._get(queue)  # type: ignore[no-untyped-call]
        except ValueError:  # not JSON; it is removed by now, and others wait behind it
            raise Empty from None


class Transport(filesystem.Transport):
    """The filesystem broker."""

    Channel = Channel


@cache
def _sender() -> Celery:
    sender = Celery("lethe-bell", set_as_current=False)
    sender.conf.update(broker_options())
    sender.conf.broker_connection_timeout = TIMEOUT_SECONDS
    # kombu's options: give up at once instead of trying forever while a request waits.
    sender.conf.broker_transport_options |= {
        "socket_timeout": TIMEOUT_SECONDS,
        "max_retries": 1,
        "interval_start": 0.0,
        "interval_step": 0.1,
        "interval_max": 0.1,
        "connect_retries_timeout": TIMEOUT_SECONDS,
    }
    return sender


def _folder() -> Path | None:
    """The filesystem broker's folder; None where the broker is a server."""
    if settings().resolved_broker_url.startswith("filesystem:"):
        return settings().data_dir / "broker"
    return None


def _pending(folder: Path) -> int:
    return sum(1 for _ in (folder / "messages").glob(f"*.{QUEUE}.msg"))
