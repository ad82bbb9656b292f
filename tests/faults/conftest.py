"""Fixtures for the worker's tests."""

from tests.support.worker_service import place

__all__ = ["place"]
