"""What tests of the engine share: models with known answers, checkpoints, artifacts, small unlearnings."""
