"""k-means, one estimator with several engines."""

from common.kmeans.balanced import balanced_labels
from common.kmeans.estimator import KMeans, choose_engine

__all__ = ["KMeans", "balanced_labels", "choose_engine"]
