"""What `docs/` shows and is made of the code: pictures and the table of settings."""
