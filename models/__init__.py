"""Where weights come from and how they are made fast. Knows no request and no HTTP."""
