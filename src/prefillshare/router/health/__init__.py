"""Which workers are up: watched by their health checks, by their metrics, and by calls that fail on them."""
