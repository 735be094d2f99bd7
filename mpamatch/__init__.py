"""Semi- and weakly-supervised segmentation of tissue images."""
