"""Configuration, the one training loop, checkpoints, evaluation, metrics, the log of a run."""
