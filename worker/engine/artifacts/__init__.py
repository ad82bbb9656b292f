"""Already quantized checkpoints: opening them, and showing what they were made from."""
