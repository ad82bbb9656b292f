"""Fixtures for the worker's tests."""

from tests.scene import place

__all__ = ["place"]
