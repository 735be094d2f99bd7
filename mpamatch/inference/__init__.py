"""Tiles, segmentation of files, masks and overlays."""
