"""A trained model on images of any size and on files: windows, labels, masks, overlays, areas."""
