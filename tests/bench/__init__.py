"""Benchmarks: ratios from one run on one machine, never timed tests."""
