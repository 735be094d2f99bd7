"""Sweeps of training runs: what is varied, how the runs are done, what is made of their scores."""
