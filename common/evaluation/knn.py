"""The weighted k-nearest-neighbour classifier on frozen embeddings."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from common.errors import ArgumentError, require, require_int
from common.evaluation.embedding import Embedded, EmbeddingScores, labelled, topk_accuracy
from common.metrics.clustering import require_labels
from common.neighbors import nearest_neighbors


def knn_classify(
    train: Tensor,
    train_labels: Tensor,
    queries: Tensor,
    *,
    n_neighbors: int = 200,
    temperature: float = 0.07,
    n_classes: int | None = None,
    memory_budget: int | None = None,
) -> Tensor:
    r"""Votes of the nearest training samples for the class of each query.

    .. math:: v_{ic} \propto \sum_{j \in N_k(i)} [y_j = c] \, \exp(\cos(q_i, x_j) / T)

    Args:
        train: ``(n, d)``, of any length; cosines are taken inside.
        train_labels: ``(n,)`` integer classes.
        queries: ``(m, d)``.
        n_neighbors: *k*, at most *n*. Instance discrimination votes with 200, GroCo with 20.
        temperature: *T*; ``inf`` gives all *k* neighbours the same vote.
        n_classes: *c*; None is the largest label plus one.
        memory_budget: of the search, see :func:`common.neighbors.nearest_neighbors`.

    Returns:
        ``(m, c)`` votes, rows sum to 1; their ``argmax`` is the class.

    Raises:
        ArgumentError: an argument out of its range, or lengths that differ.

    Source:
        Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination,
        CVPR 2018, section 3.4.

    Example:
        >>> train = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> votes = knn_classify(train, torch.tensor([0, 0, 1]), torch.eye(2), n_neighbors=2)
        >>> votes.argmax(dim=1)
        tensor([0, 1])
    """
    require_labels("train_labels", train_labels, n_classes)
    if len(train) != len(train_labels):
        raise ArgumentError(
            f"train and train_labels must be equally long, got {len(train)} and {len(train_labels)}"
        )
    require(temperature > 0, "temperature", temperature, "above 0")
    n_neighbors = require_int("n_neighbors", n_neighbors, 1, len(train))
    cosine, neighbors = nearest_neighbors(
        queries, train, n_neighbors, metric="cosine", memory_budget=memory_budget
    )  # (m, k)
    classes = train_labels.to(neighbors.device, torch.int64)[neighbors]
    # The largest cosine is divided out, so that no temperature overflows.
    weights = ((cosine - cosine.amax(dim=1, keepdim=True)) / temperature).exp()
    n_classes = n_classes or int(train_labels.max()) + 1
    votes = weights.new_zeros(len(queries), n_classes).scatter_add_(1, classes, weights)
    return votes / votes.sum(dim=1, keepdim=True)


class KNNScores(EmbeddingScores):
    """Accuracy of :func:`knn_classify`, fitted on the first loader, scored on the last.

    Args:
        n_neighbors: *k*.
        temperature: *T*.
        loaders: two, see :class:`~common.evaluation.embedding.EmbeddingScores`, as for the rest,
            the batches and the distributed behaviour.
        every_n_epochs: epochs between scores.
        name: of the scores in the log.

    Logged: ``knn/top1``, and ``knn/top5`` with more than five classes.

    Example:
        >>> scores = KNNScores(n_neighbors=20)
        >>> # Trainer(callbacks=[scores]).fit(model, data)
        >>> scores.history
        []
    """

    def __init__(
        self,
        n_neighbors: int = 200,
        temperature: float = 0.07,
        loaders: Sequence[Iterable[Any]] | None = None,
        every_n_epochs: int = 1,
        name: str = "knn",
    ):
        super().__init__(loaders, every_n_epochs, name)
        self.n_neighbors = require_int("n_neighbors", n_neighbors, 1)
        require(temperature > 0, "temperature", temperature, "above 0")
        self.temperature = temperature

    def score(self, fitted_on: Embedded | None, scored: Embedded) -> dict[str, float]:
        train, train_labels = labelled(fitted_on, "first")
        queries, labels = labelled(scored, "last")
        n_classes = max(int(train_labels.max()), int(labels.max())) + 1
        votes = knn_classify(
            train,
            train_labels,
            queries,
            n_neighbors=self.n_neighbors,
            temperature=self.temperature,
            n_classes=n_classes,
        )
        return topk_accuracy(votes, labels)
