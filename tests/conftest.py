"""Fixtures for all tests."""

from tests.support.servers import postgres_url, redis_url
from tests.support.worker_service import place
from tests.support.worlds import llama, neox, world_cache

__all__ = ["llama", "neox", "place", "postgres_url", "redis_url", "world_cache"]
