"""Entropic optimal transport: balanced codes, transport plans, doubly stochastic affinities."""

from common.sinkhorn.plans import balanced_codes, doubly_stochastic, transport_plan

__all__ = ["balanced_codes", "doubly_stochastic", "transport_plan"]
