"""Training recipes in YAML, one per data set, plus `demo`."""
