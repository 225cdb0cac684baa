"""Protocols that score what a method learned: plain functions and Lightning callbacks."""

from common.evaluation.clustering import (
    ClusteringScores,
    KMeansScores,
    cluster_embeddings,
    clustering_scores,
    hard_labels,
)
from common.evaluation.embedding import Embedded, EmbeddingScores, topk_accuracy
from common.evaluation.geometry import GeometryScores, alignment, tolerance, uniformity
from common.evaluation.knn import KNNScores, knn_classify
from common.evaluation.linear_probe import (
    LinearProbe,
    LinearProbeScores,
    fit_linear_probe,
    train_linear_probe,
)
from common.evaluation.retrieval import RetrievalScores, retrieval_scores

__all__ = [
    "ClusteringScores",
    "Embedded",
    "EmbeddingScores",
    "GeometryScores",
    "KMeansScores",
    "KNNScores",
    "LinearProbe",
    "LinearProbeScores",
    "RetrievalScores",
    "alignment",
    "cluster_embeddings",
    "clustering_scores",
    "fit_linear_probe",
    "hard_labels",
    "knn_classify",
    "retrieval_scores",
    "tolerance",
    "topk_accuracy",
    "train_linear_probe",
    "uniformity",
]
