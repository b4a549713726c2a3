"""The benchmark: the same agent sessions on several systems, and what can be said of the differences."""
