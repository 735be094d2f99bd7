"""Studies: what they vary, how their runs are done, and the statistics of the scores."""
