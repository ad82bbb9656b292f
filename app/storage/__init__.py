"""Where checkpoints are stored: places that a request may name, and the store of models that remediations make."""
