"""Fuzzers, each a program of its own, for what reads a client's bytes."""
