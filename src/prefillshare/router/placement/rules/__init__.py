"""The rules, one a file. A file here that defines a `Rule` is all that it takes: `table.py` finds it by looking."""
