"""Fixtures for all tests."""

from tests.support.servers import postgres_url, redis_url
from tests.support.worlds import world_cache

__all__ = ["postgres_url", "redis_url", "world_cache"]
