"""k-means, one estimator with several engines."""

from common.kmeans.balanced import balanced_labels
from common.kmeans.estimator import KMeans, choose_engine
from common.kmeans.ragged import RaggedClusters, ragged_kmeans

__all__ = ["KMeans", "RaggedClusters", "balanced_labels", "choose_engine", "ragged_kmeans"]
