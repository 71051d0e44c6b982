"""What this server makes of a GPU, measured in a quarter of an hour of a rented one; see `run`."""
