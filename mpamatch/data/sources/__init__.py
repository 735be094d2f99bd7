"""One module per kind of raw data set: each turns it into items that `data.prepared` writes."""
