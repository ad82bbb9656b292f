"""Lethe's workers: the processes that do the work, and the engine that measures models."""
