"""MUSE's metrics (arXiv 2407.06460): VerbMem, KnowMem, PrivLeak, exactly as defined and batched.

Also what a single greedy answer does not show: teacher-forced columns, and VerbMem sampled.
"""
