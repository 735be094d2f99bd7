"""Benchmarks and experiments, installed as `mpamatch.benchmarks`."""
