"""Quantizing a model's weights to a precision."""
