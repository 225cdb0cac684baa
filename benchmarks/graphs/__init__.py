"""Tables of graph methods."""
