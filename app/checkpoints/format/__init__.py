"""What a checkpoint is on disk: its files, configs, tensors and digests, as plain data."""
