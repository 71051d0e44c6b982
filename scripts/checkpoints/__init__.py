"""Checkpoints of random weights in the original layout, for tests and for the full-size check."""
