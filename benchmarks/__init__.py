"""The published tables, the harness that reproduces them, and the command line."""
