"""The doorbell: what ringing leaves in the broker, and what it does when there is none."""

import os
import socket
import time
from pathlib import Path

import pytest
import redis

from app import queue
from app.settings import settings

sqlite = pytest.mark.parametrize("place", ["sqlite"], indirect=True)
postgresql = pytest.mark.parametrize("place", ["postgresql"], indirect=True)


def messages() -> list[str]:
    return os.listdir(settings().data_dir / "broker" / "messages")


@sqlite
def test_ringing_often_with_nobody_there_leaves_few_messages(place: str) -> None:
    assert all(queue.ring() for _ in range(100))
    assert len(messages()) == queue.PENDING_ENOUGH
    assert all(name.endswith(f".{queue.QUEUE}.msg") for name in messages())


@postgresql
def test_ringing_puts_a_message_without_content_on_the_redis_queue(place: str) -> None:
    assert queue.ring() is True
    with redis.Redis.from_url(settings().broker_url) as client:
        assert client.llen(queue.QUEUE) == 1


@sqlite
def test_a_damaged_message_is_taken_away_and_the_next_one_read(place: str) -> None:
    queue.ring()
    folder = settings().data_dir / "broker" / "messages"
    (folder / f"0_empty.{queue.QUEUE}.msg").touch()
    with queue._sender().connection_for_read() as connection:
        found = [connection.default_channel.basic_get(queue.QUEUE, no_ack=True) for _ in range(2)]
    assert found[0] is None
    assert found[1] is not None
    assert messages() == []


@sqlite
@pytest.mark.parametrize("listens", [True, False], ids=["silent", "refusing"])
def test_a_broker_that_does_not_answer_costs_little_time_and_no_error(
    place: str, monkeypatch: pytest.MonkeyPatch, listens: bool
) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen()
        monkeypatch.setenv("LETHE_BROKER_URL", f"redis://127.0.0.1:{server.getsockname()[1]}/0")
        settings.cache_clear()
        started = time.monotonic()
        assert queue.ring() is False
        assert time.monotonic() - started < 3


@sqlite
def test_a_broker_folder_that_cannot_be_written_is_no_error(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETHE_DATA_DIR", str(Path("/proc/nothing")))
    settings.cache_clear()
    assert queue.ring() is False
