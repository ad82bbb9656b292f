"""Already quantized checkpoints: opening them, and what shows whose they are."""
