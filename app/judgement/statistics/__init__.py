"""From per-item scores to estimates with intervals; knows no thresholds."""
