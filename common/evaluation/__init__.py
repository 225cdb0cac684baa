"""Protocols that score what a method learned: plain functions and Lightning callbacks."""

from common.evaluation.clustering import (
    ClusteringScores,
    cluster_embeddings,
    clustering_scores,
    hard_labels,
)

__all__ = ["ClusteringScores", "cluster_embeddings", "clustering_scores", "hard_labels"]
