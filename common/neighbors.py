"""Exact nearest-neighbour graphs."""

from typing import Any, Literal

import torch
from torch import Tensor

from common.data.arrays import dense_tensor
from common.errors import ArgumentError, require, require_int
from common.losses._similarity import unit_rows

Metric = Literal["euclidean", "cosine", "dot"]
METRICS = ("euclidean", "cosine", "dot")
BLOCK_ENTRIES = 1 << 22


def knn_graph(
    x: Any,
    n_neighbors: int,
    *,
    metric: Metric = "euclidean",
    block_size: int | None = None,
) -> Tensor:
    r"""The directed graph of the nearest neighbours of every row, found by exhaustive search.

    Scores are computed in float64, a block of rows at a time, so that memory is ``block_size * n``.
    A kernel that falls with the distance, such as :math:`\exp(-\lVert x_i - x_j \rVert^2 / 2)`, has
    the Euclidean neighbours. SDCN makes its graph of Reuters from binarised features, every row
    divided by its sum, with ``metric="dot"``.

    Args:
        x: ``(n, d)`` tensor, dense or sparse, on any device that has float64; NumPy array or SciPy
            sparse matrix.
        n_neighbors: edges per row, at least 1 and less than *n*.
        metric: smallest Euclidean distance, largest cosine (0 with a zero row) or largest inner
            product.
        block_size: rows at a time; the default keeps a block of scores at 32 MiB. The graph does
            not depend on it, save for scores that agree to rounding.

    Returns:
        ``(2, n * n_neighbors)`` int64 on the device of ``x``: edges *i* to *j*, ordered by *i*, the
        nearest *j* first and the lower *j* first among equals; never *i* to *i*.

    Raises:
        ArgumentError: an argument out of its range, or values of ``x`` that are not finite.

    Example:
        >>> knn_graph(torch.tensor([[0.0], [1.0], [3.0]]), 1)
        tensor([[0, 1, 2],
                [1, 0, 1]])
    """
    x = dense_tensor("x", x)
    matrix = x.ndim == 2 and len(x) >= 2 and not x.is_complex()
    require(matrix, "x", (x.dtype, *x.shape), "real and (n, d) with n of at least 2")
    n = len(x)
    n_neighbors = require_int("n_neighbors", n_neighbors, 1, n - 1)
    require(metric in METRICS, "metric", metric, f"one of {', '.join(METRICS)}")
    if block_size is not None:
        block_size = require_int("block_size", block_size, 1)

    x = x.double()
    if metric == "cosine":
        x = unit_rows(x)
    elif metric == "euclidean":
        # Far from the origin |x|^2 + |y|^2 - 2 x.y cancels. The median is a value of the feature,
        # so that whole numbers stay whole and equal distances equal; a mean would break the ties.
        x = x - x.sort(dim=0).values[n // 2]
    squared_norm = x.square().sum(dim=1)  # (n,)
    if not squared_norm.isfinite().all():
        raise ArgumentError("x has values that are not finite, or whose squares are not")
    neighbors = []
    for rows in torch.arange(n, device=x.device).split(block_size or max(1, BLOCK_ENTRIES // n)):
        distance = -x[rows] @ x.T  # (b, n)
        if metric == "euclidean":
            distance = (2 * distance + squared_norm[rows, None] + squared_norm).clamp_min_(0)
        distance[torch.arange(len(rows), device=x.device), rows] = torch.inf
        neighbors.append(_smallest(distance, n_neighbors))
    source = torch.arange(n, device=x.device).repeat_interleave(n_neighbors)
    return torch.stack([source, torch.cat(neighbors).flatten()])


def _smallest(values: Tensor, k: int) -> Tensor:
    """Columns of the ``k`` smallest values of each row, smallest first, among equals lowest first.

    ``topk`` leaves open which of several equal values it takes; so it only tells the largest value
    to take, and of the columns that hold this the lowest are taken.
    """
    largest = values.topk(k, dim=1, largest=False).values[:, -1:]  # (b, 1)
    below = values < largest
    level = values == largest
    taken = below | (level & (level.cumsum(dim=1) <= k - below.sum(dim=1, keepdim=True)))
    columns = taken.nonzero()[:, 1].view(-1, k)  # (b, k), ascending columns
    order = values.gather(1, columns).argsort(dim=1, stable=True)
    return columns.gather(1, order)
