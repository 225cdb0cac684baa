"""Ours beside named peers, measured in one run: ratios, not claims."""
