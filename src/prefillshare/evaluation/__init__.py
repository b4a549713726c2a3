"""How good is a decode module? The same held-out items for every system, scored in the same way."""
