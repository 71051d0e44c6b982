"""What the server withstands: hostile uploads, odd bytes, SIGKILL under load."""
