"""The prepared form, its sources, splits, checks, draws and feeds."""
