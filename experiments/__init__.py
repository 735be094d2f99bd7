"""Comparisons of methods and their results: run from a checkout, not installed."""
