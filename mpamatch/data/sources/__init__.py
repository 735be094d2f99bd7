"""One module per kind of raw data set: its record KIND (data/kinds.py) and its reader raw_set."""
