"""Which images or regions to label next: how unsure a model is of each, and a choice of unlike ones."""
