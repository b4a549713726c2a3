"""What a deployment would do under a load: a deterministic simulation of workers, caches, handoffs and placement."""
