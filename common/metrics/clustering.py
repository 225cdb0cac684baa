"""Scores of a clustering against classes, after the best one-to-one matching of the two.

Cluster names mean nothing, so clusters are first matched to classes such that most samples agree
(the Hungarian method on the contingency table). With fewer clusters than classes, the classes left
over are missed: they have F1 = 0. With more clusters than classes, the clusters left over stand for
no class and their samples count as errors, so splitting a class never pays.
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchmetrics import Metric

from common.errors import ArgumentError, require_int

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def contingency_table(preds: Tensor, target: Tensor, n_clusters: int, n_classes: int) -> Tensor:
    """Counts ``(n_clusters, n_classes)``, int64, of samples by cluster (row) and class (column).

    Args:
        preds: ``(n,)`` integer cluster of each sample, in ``[0, n_clusters)``.
        target: ``(n,)`` integer class of each sample, in ``[0, n_classes)``.

    Raises:
        ArgumentError: shapes differ, labels are not integers or out of range.

    Example:
        >>> contingency_table(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2, 2)
        tensor([[1, 1],
                [0, 1]])
    """
    require_labels("preds", preds, n_clusters)
    require_labels("target", target, n_classes)
    if preds.shape != target.shape:
        raise ArgumentError(
            f"preds and target must have one label for each sample, "
            f"got {len(preds)} and {len(target)}"
        )
    cells = preds.long() * n_classes + target.long()
    return torch.bincount(cells, minlength=n_clusters * n_classes).view(n_clusters, n_classes)


def match_clusters(contingency: Tensor) -> Tensor:
    """The one-to-one matching of clusters to classes on which most samples agree.

    Clusters and classes without a sample are left out. What remains is matched in an order given by
    the counts, so that of several matchings equally good, the numbering of clusters picks none.

    Args:
        contingency: ``(n_clusters, n_classes)`` counts, see :func:`contingency_table`.

    Returns:
        ``(n_clusters,)`` int64 class of each cluster, -1 for a cluster without one.

    Source:
        Kuhn, The Hungarian method for the assignment problem, 1955.

    Example:
        >>> match_clusters(torch.tensor([[0, 5], [4, 1], [0, 2]]))
        tensor([ 1,  0, -1])
    """
    if contingency.ndim != 2:
        raise ArgumentError(
            f"contingency must have shape (n_clusters, n_classes), got {tuple(contingency.shape)}"
        )
    counts = contingency.cpu().numpy()
    rows, columns = np.flatnonzero(counts.any(axis=1)), np.flatnonzero(counts.any(axis=0))
    rows = rows[np.lexsort(counts[rows].T)]
    clusters, classes = linear_sum_assignment(counts[np.ix_(rows, columns)], maximize=True)
    matched = np.full(len(counts), -1)
    matched[rows[clusters]] = columns[classes]
    return torch.from_numpy(matched).to(contingency.device)


def cluster_accuracy(
    preds: Tensor, target: Tensor, n_clusters: int | None = None, n_classes: int | None = None
) -> Tensor:
    """Share of samples whose cluster is matched to their class; between 0 and 1.

    Args:
        preds: ``(n,)`` integer clusters.
        target: ``(n,)`` integer classes.
        n_clusters: if given, ``preds`` must lie in ``[0, n_clusters)``.
        n_classes: if given, ``target`` must lie in ``[0, n_classes)``.

    Returns:
        A float64 scalar, on the CPU.

    Raises:
        ArgumentError: no sample, shapes differ, labels are not integers, negative or out of range.

    Example:
        >>> cluster_accuracy(torch.tensor([1, 1, 0, 0]), torch.tensor([0, 0, 1, 0]))
        tensor(0.7500, dtype=torch.float64)
    """
    return accuracy_of(compact_table(preds, target, n_clusters, n_classes))


def matched_macro_f1(
    preds: Tensor, target: Tensor, n_clusters: int | None = None, n_classes: int | None = None
) -> Tensor:
    """F1 of each class with the cluster matched to it, averaged over the classes that occur.

    Arguments, value and errors as for :func:`cluster_accuracy`; a class without a cluster has
    F1 = 0.

    Example:
        >>> matched_macro_f1(torch.tensor([1, 1, 1, 1]), torch.tensor([0, 0, 1, 0]))
        tensor(0.4286, dtype=torch.float64)
    """
    return macro_f1_of(compact_table(preds, target, n_clusters, n_classes))


def accuracy_of(contingency: Tensor) -> Tensor:
    """:func:`cluster_accuracy` of a contingency table; NaN for an empty one."""
    agreement, _, support = _matched_counts(contingency)
    return agreement.sum() / support.sum()


def macro_f1_of(contingency: Tensor) -> Tensor:
    """:func:`matched_macro_f1` of a contingency table; NaN for an empty one."""
    agreement, predicted, support = _matched_counts(contingency)
    f1 = 2.0 * agreement / (support + predicted).clamp_min(1)
    return f1[support > 0].mean()


def _matched_counts(contingency: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each class: samples in the cluster matched to it that are its own, those, and its own.

    float64 on the CPU, since MPS has none.
    """
    contingency = contingency.cpu().double()
    matched = match_clusters(contingency)
    used = matched >= 0
    agreement, predicted = contingency.new_zeros(2, contingency.shape[1])
    agreement[matched[used]] = contingency[used, matched[used]]
    predicted[matched[used]] = contingency[used].sum(dim=1)
    return agreement, predicted, contingency.sum(dim=0)


class _MatchedScore(Metric):
    """A score of the contingency table, which is summed over batches and ranks."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    contingency: Tensor

    def __init__(self, n_clusters: int, n_classes: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.n_clusters = require_int("n_clusters", n_clusters, 1)
        self.n_classes = require_int("n_classes", n_clusters if n_classes is None else n_classes, 1)
        counts = torch.zeros(self.n_clusters, self.n_classes, dtype=torch.int64)
        self.add_state("contingency", counts, dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds ``(n,)`` clusters and classes."""
        self.contingency += contingency_table(preds, target, self.n_clusters, self.n_classes)


class ClusterAccuracy(_MatchedScore):
    """:func:`cluster_accuracy` over all batches of all ranks.

    Args:
        n_clusters: number of clusters.
        n_classes: number of classes; None: as many as clusters.

    Example:
        >>> metric = ClusterAccuracy(2)
        >>> metric.update(torch.tensor([1, 1]), torch.tensor([0, 0]))
        >>> metric.update(torch.tensor([0, 0]), torch.tensor([1, 0]))
        >>> metric.compute()
        tensor(0.7500, dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        return accuracy_of(self.contingency)


class MatchedMacroF1(_MatchedScore):
    """:func:`matched_macro_f1` over all batches of all ranks.

    Args:
        n_clusters: number of clusters.
        n_classes: number of classes; None: as many as clusters.

    Example:
        >>> metric = MatchedMacroF1(2)
        >>> metric(torch.tensor([1, 1, 1, 1]), torch.tensor([0, 0, 1, 0]))
        tensor(0.4286, dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        return macro_f1_of(self.contingency)


def compact_table(
    preds: Tensor, target: Tensor, n_clusters: int | None = None, n_classes: int | None = None
) -> Tensor:
    """The contingency table without the clusters and classes that have no sample.

    They change no score, and without them the table is small whatever the names are.
    """
    require_labels("preds", preds, n_clusters)
    require_labels("target", target, n_classes)
    clusters, preds = preds.unique(return_inverse=True)
    classes, target = target.unique(return_inverse=True)
    return contingency_table(preds, target, len(clusters), len(classes))


def require_labels(name: str, labels: Tensor, limit: int | None = None) -> None:
    """Raises ArgumentError unless ``labels`` is ``(n,)`` integers in ``[0, limit)``, n > 0."""
    if not isinstance(labels, Tensor) or labels.dtype not in INTEGERS:
        came = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise ArgumentError(f"{name} must be a tensor of integers, got {came}")
    if labels.ndim != 1 or not len(labels):
        raise ArgumentError(f"{name} must have shape (n,), n > 0, got {tuple(labels.shape)}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (limit is not None and high >= limit):
        allowed = "at least 0" if limit is None else f"in [0, {limit})"
        raise ArgumentError(f"{name} must be {allowed}, got values from {low} to {high}")
