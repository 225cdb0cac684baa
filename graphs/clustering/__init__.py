"""Deep clustering of attributed graphs."""
