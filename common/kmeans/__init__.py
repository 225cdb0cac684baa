"""k-means, one estimator with several engines."""

from common.kmeans.estimator import KMeans, choose_engine

__all__ = ["KMeans", "choose_engine"]
