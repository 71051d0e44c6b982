"""The HTTP API, the command line, settings, accounts, and images in and out."""

__version__ = "0.1.0"
