"""Encoders, TransUNet, text towers, context tokens, prototypes: usable alone."""
