"""What a client sees: the HTTP API, the command line, settings, keys and pictures in and out."""

__version__ = "0.1.0"
