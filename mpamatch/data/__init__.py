"""Data: raw sets and their prepared form, splits, checks, random draws, feeds of batches."""
