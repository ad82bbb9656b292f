"""From per-item scores to what is estimated of a pair, with intervals; no threshold is known here."""
