"""Where checkpoints lie: what a request may name, and the store of models that remediations make."""
