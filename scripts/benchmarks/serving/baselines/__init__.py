"""Servers to be held against: what one writes around a diffusers pipeline without an engine."""
