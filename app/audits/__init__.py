"""Audits: a pair of checkpoints, judged at every precision of a plan."""
