"""The shared core: objectives, assignment, metrics, data and training. Knows no domain."""
