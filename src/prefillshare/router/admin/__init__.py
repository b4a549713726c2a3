"""The admin API: workers and modules join, drain and leave while the router runs."""
