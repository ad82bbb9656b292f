"""Fixtures for all tests."""

from tests.servers import postgres_url, redis_url

__all__ = ["postgres_url", "redis_url"]
