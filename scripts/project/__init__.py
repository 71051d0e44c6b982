"""The dependencies that are pinned, and an environment of exactly those."""
