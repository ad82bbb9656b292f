"""The kinds of work that an attempt does."""
