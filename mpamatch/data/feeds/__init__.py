"""Feeds apply draws to files and hand over batches: torchvision (here), DALI."""
