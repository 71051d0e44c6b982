"""The clients that people have, as their own packages or as they send by hand, against a server."""
