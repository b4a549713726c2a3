"""Which calls may begin: limits of workers, and the queue in front of them. docs/flow.md explains it."""
