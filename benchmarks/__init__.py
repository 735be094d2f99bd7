"""Benchmarks, installed as `mpamatch.benchmarks`."""
