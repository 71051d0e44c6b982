"""Faults that a real server is put through under load, and what became of every request."""
