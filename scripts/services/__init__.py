"""A PostgreSQL and a Redis for as long as a test or a benchmark runs."""
