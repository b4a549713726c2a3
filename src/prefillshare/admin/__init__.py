"""The command line's side of the admin API: a client of a running router."""
