"""Proving that a precision was applied, on the live weights."""
