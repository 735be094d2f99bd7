"""Whole slides: reading them, their tissue, and what people marked on them. Knows no model and no data set."""
