"""Checkpoints: directories of safetensors, named by their digest."""
