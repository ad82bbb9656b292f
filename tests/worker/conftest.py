"""Fixtures for the worker's tests."""

from tests.support.scene import place

__all__ = ["place"]
