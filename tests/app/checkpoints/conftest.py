"""The checkpoint that these tests change."""

from tests.support.worlds import copy

__all__ = ["copy"]
