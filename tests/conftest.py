"""Fixtures for all tests."""

from tests.servers import postgres_url, redis_url
from tests.worlds import world_cache

__all__ = ["postgres_url", "redis_url", "world_cache"]
