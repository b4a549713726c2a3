"""The status page at `/`: a board of counters, and the files that show them."""
