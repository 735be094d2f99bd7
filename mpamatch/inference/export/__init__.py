"""A trained network as a file for others: ONNX, or a bioimage.io package; and such a file as a Segmenter again."""
