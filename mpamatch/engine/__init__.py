"""Configuration, the one training loop, checkpoints, evaluation, metrics."""
