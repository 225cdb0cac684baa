"""Metrics of clusterings that torchmetrics does not have, in functional and in class form."""

from common.metrics.clustering import (
    ClusterAccuracy,
    MatchedMacroF1,
    cluster_accuracy,
    contingency_table,
    match_clusters,
    matched_macro_f1,
)

__all__ = [
    "ClusterAccuracy",
    "MatchedMacroF1",
    "cluster_accuracy",
    "contingency_table",
    "match_clusters",
    "matched_macro_f1",
]
