"""Retrieval by class: whether the nearest samples are of the query's own class."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from common.errors import ArgumentError, require, require_int
from common.evaluation.embedding import Embedded, EmbeddingScores, labelled
from common.losses._similarity import unit_rows
from common.metrics.clustering import require_labels

METRICS = ("euclidean", "cosine", "dot")
BLOCK_ENTRIES = 1 << 22


def retrieval_scores(
    queries: Tensor,
    labels: Tensor,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    metric: Literal["euclidean", "cosine", "dot"] = "cosine",
) -> dict[str, float]:
    r"""Recall, precision and mean average precision of samples ranked by their nearness.

    - ``recall@k``: share of queries with one of their class or more among the *k* nearest, as
      metric learning counts it (torchmetrics calls it the hit rate);
    - ``precision@k``: share of the *k* nearest that are of the query's class;
    - ``map``: mean over queries of the average precision over the whole ranking.

    A query whose class has no sample to be found counts 0. Without a gallery every sample queries
    all others. Rankings are made for a block of queries at a time, in at least float32, and of
    equally near samples the earlier comes first; memory is O(n) and time O(m n log n).

    Args:
        queries: ``(m, d)``.
        labels: ``(m,)`` integer classes.
        gallery: ``(n, d)`` samples to search; None: the queries.
        gallery_labels: ``(n,)``.
        ks: ranks, each from 1 to the number of samples searched.
        metric: smallest Euclidean distance, largest cosine or largest inner product.

    Raises:
        ArgumentError: an argument out of its range, or lengths that differ.

    Source:
        recall@k: Jegou, Douze and Schmid, PAMI 2011; used so by ADSL (arXiv 2206.09068).

    Example:
        >>> z = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
        >>> scores = retrieval_scores(z, torch.tensor([0, 0, 0, 1]), ks=[1], metric="euclidean")
        >>> {name: round(score, 4) for name, score in scores.items()}
        {'recall@1': 0.5, 'precision@1': 0.5, 'map': 0.6458}
    """
    require(metric in METRICS, "metric", metric, f"one of {', '.join(METRICS)}")
    if (gallery is None) != (gallery_labels is None):
        raise ArgumentError("gallery and gallery_labels go together, got one of them")
    alone = gallery is None or gallery_labels is None
    found, found_labels = (queries, labels) if alone else (gallery, gallery_labels)
    assert found is not None
    assert found_labels is not None
    for names, x, y in (
        ("queries and labels", queries, labels),
        ("gallery and gallery_labels", found, found_labels),
    ):
        require_labels(names.split()[-1], y)
        if x.ndim != 2 or len(x) != len(y) or x.shape[1] != queries.shape[1]:
            raise ArgumentError(
                f"{names} must be (n, {queries.shape[-1]}) and (n,), got {tuple(x.shape)} and "
                f"{tuple(y.shape)}"
            )
        if not x.isfinite().all():
            raise ArgumentError(f"{names.split()[0]} must be finite, got NaN or infinity")
    searched = len(found) - alone
    ks = [require_int("ks", k, 1, searched) for k in ks]

    queries, found = _comparable(queries, found, metric)
    offsets = found.square().sum(dim=1) / 2 if metric == "euclidean" else found.new_zeros(())
    sums = torch.zeros(2 * len(ks) + 1, dtype=torch.float64)
    ranks = torch.arange(1, searched + 1, device=found.device)
    for rows in torch.arange(len(queries), device=found.device).split(
        max(1, BLOCK_ENTRIES // len(found))
    ):
        nearness = queries[rows] @ found.T - offsets  # (b, n)
        if alone:
            nearness[torch.arange(len(rows), device=found.device), rows] = -torch.inf
        order = nearness.argsort(dim=1, descending=True, stable=True)[:, :searched]
        relevant = found_labels.to(order.device)[order] == labels.to(order.device)[rows, None]
        hits = relevant.cumsum(dim=1)  # (b, n)
        average = (hits / ranks * relevant).sum(dim=1) / hits[:, -1].clamp(min=1)
        columns = [hits[:, k - 1] > 0 for k in ks] + [hits[:, k - 1] / k for k in ks] + [average]
        sums += torch.stack([column.float().sum() for column in columns]).cpu().double()
    scores = [f"recall@{k}" for k in ks] + [f"precision@{k}" for k in ks] + ["map"]
    return dict(zip(scores, (sums / len(queries)).tolist(), strict=True))


def _comparable(queries: Tensor, found: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Both in one dtype of at least float32, normalised or centred as the metric needs."""
    if metric == "cosine":
        queries, found = unit_rows(queries), unit_rows(found)
    dtype = torch.promote_types(torch.promote_types(queries.dtype, found.dtype), torch.float32)
    queries, found = queries.to(dtype), found.to(dtype)
    if metric == "euclidean":  # far from the origin squares would cancel
        centre = found.median(dim=0).values
        queries, found = queries - centre, found - centre
    return queries, found


class RetrievalScores(EmbeddingScores):
    """:func:`retrieval_scores` of the last loader, every sample querying all others.

    Args:
        ks: ranks.
        metric: of nearness.
        loaders: see :class:`~common.evaluation.embedding.EmbeddingScores`, as for the rest, the
            batches and the distributed behaviour.
        every_n_epochs: epochs between scores.
        name: of the scores in the log.

    Logged: ``retrieval/recall@1``, ``retrieval/precision@1``, ``retrieval/map`` and so on.

    Example:
        >>> RetrievalScores(ks=[1, 5]).history
        []
    """

    def __init__(
        self,
        ks: Sequence[int] = (1, 2, 4, 8),
        metric: Literal["euclidean", "cosine", "dot"] = "cosine",
        loaders: Sequence[Iterable[Any]] | None = None,
        every_n_epochs: int = 1,
        name: str = "retrieval",
    ):
        super().__init__(loaders, every_n_epochs, name)
        require(metric in METRICS, "metric", metric, f"one of {', '.join(METRICS)}")
        self.ks = [require_int("ks", k, 1) for k in ks]
        self.metric = metric

    def score(self, fitted_on: Embedded | None, scored: Embedded) -> dict[str, float]:
        return retrieval_scores(*labelled(scored, "last"), ks=self.ks, metric=self.metric)
