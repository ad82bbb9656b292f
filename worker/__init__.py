"""Lethe's workers: what runs beside a GPU, and the engine that measures models."""
