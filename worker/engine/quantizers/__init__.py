"""Holding a model's weights at a precision."""
