"""The worker's loop: claim, beat, finish."""
