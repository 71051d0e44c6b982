"""Sources of weights, and the ways to make them fast. Knows no request and no HTTP."""
