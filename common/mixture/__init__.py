"""Gaussian mixtures, and the evidence for their number of components."""

from common.mixture.estimator import GaussianMixture
from common.mixture.evidence import NormalInverseWishart, log_split_ratio

__all__ = ["GaussianMixture", "NormalInverseWishart", "log_split_ratio"]
