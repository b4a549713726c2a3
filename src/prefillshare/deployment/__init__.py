"""Starting a deployment: what is checked first, and local processes that are supervised."""
