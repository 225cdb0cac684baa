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
    found = _search({"x": x}, n_neighbors, metric, exclude_self=True, block_size=block_size)
    source = torch.arange(n, device=x.device).repeat_interleave(n_neighbors)
    return torch.stack([source, found.flatten()])


def nearest_neighbors(
    queries: Tensor,
    keys: Tensor,
    n_neighbors: int,
    *,
    metric: Metric = "euclidean",
    exclude_self: bool = False,
    memory_budget: int | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The nearest keys of every query, by exhaustive search over blocks of queries.

    float64 is searched in float64, everything else in float32: the order of keys that are equally
    near to within rounding is then open, and otherwise the lower index comes first. No more scores
    exist at a time than fit the memory budget, or one query's. Autocast is switched off inside, and
    there is no gradient.

    Args:
        queries: ``(m, d)``.
        keys: ``(n, d)`` on the same device.
        n_neighbors: keys per query, at least 1 and at most *n*.
        metric: smallest Euclidean distance, largest cosine (0 with a zero row) or largest inner
            product.
        exclude_self: query *i* is key *i* and not its own neighbour; *m* is *n* then, and
            ``n_neighbors`` less than *n*.
        memory_budget: bytes for a block of scores. None: 32 MiB on the CPU, 256 MiB elsewhere.

    Returns:
        Values and indices ``(m, n_neighbors)``, the nearest first. Values are Euclidean distances
        (not squared, and taken from the differences, so that equal rows have distance 0), cosines
        or inner products; indices are int64 rows of ``keys``.

    Raises:
        ArgumentError: an argument out of its range, or values that are not finite.

    Example:
        >>> keys = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
        >>> values, indices = nearest_neighbors(keys[:1], keys, 2)
        >>> values
        tensor([[0., 1.]])
        >>> indices
        tensor([[0, 2]])
        >>> nearest_neighbors(keys, keys, 1, exclude_self=True)[1].flatten()
        tensor([2, 2, 0])
    """
    for name, x in (("queries", queries), ("keys", keys)):
        came = (x.dtype, *x.shape) if isinstance(x, Tensor) else type(x).__name__
        require(_is_matrix(x), name, came, "a dense real tensor of shape (n, d)")
    if queries.shape[1] != keys.shape[1]:
        raise ArgumentError(
            f"queries and keys must have the same width, "
            f"got {tuple(queries.shape)} and {tuple(keys.shape)}"
        )
    if exclude_self and len(queries) != len(keys):
        raise ArgumentError(
            f"exclude_self needs as many queries as keys, got {len(queries)} and {len(keys)}"
        )
    n_neighbors = require_int("n_neighbors", n_neighbors, 1, len(keys) - exclude_self)
    require(metric in METRICS, "metric", metric, f"one of {', '.join(METRICS)}")
    if memory_budget is None:
        memory_budget = 2**25 if keys.device.type == "cpu" else 2**28
    memory_budget = require_int("memory_budget", memory_budget, 1)

    dtype = torch.promote_types(torch.promote_types(queries.dtype, keys.dtype), torch.float32)
    queries, keys = queries.detach().to(dtype), keys.detach().to(dtype)
    found = _search(
        {"queries": queries, "keys": keys},
        n_neighbors,
        metric,
        exclude_self=exclude_self,
        block_size=max(1, memory_budget // (len(keys) * keys.element_size())),
    )
    return _values(queries, keys, found, metric, memory_budget)


def _is_matrix(x: Any) -> bool:
    dense = isinstance(x, Tensor) and x.layout == torch.strided and not x.is_complex()
    return dense and x.ndim == 2 and x.numel() > 0


def _search(
    tables: dict[str, Tensor],
    k: int,
    metric: Metric,
    *,
    exclude_self: bool,
    block_size: int | None,
) -> Tensor:
    """Indices ``(m, k)`` of the nearest keys, computed in the precision of the tables.

    ``tables`` are the queries and the keys by name, or one that is both.
    """
    rows = list(tables.values())
    n = len(rows[-1])
    if metric == "cosine":
        rows = [unit_rows(x) for x in rows]
    elif metric == "euclidean":
        # Far from the origin |x|^2 + |y|^2 - 2 x.y cancels. The median is a value of the feature,
        # so that whole numbers stay whole and equal distances equal; a mean would break the ties.
        origin = rows[-1].sort(dim=0).values[n // 2]
        rows = [x - origin for x in rows]
    norms = [x.square().sum(dim=1) for x in rows]
    for name, squares in zip(tables, norms, strict=True):
        if not squares.isfinite().all():
            raise ArgumentError(f"{name} has values that are not finite, or whose squares are not")
    queries, keys = rows[0], rows[-1]
    query_norms, key_norms = norms[0], norms[-1]
    neighbors = []
    indices = torch.arange(len(queries), device=keys.device)
    with torch.autocast(keys.device.type, enabled=False):
        for part in indices.split(block_size or max(1, BLOCK_ENTRIES // n)):
            distance = -queries[part] @ keys.T  # (b, n)
            if metric == "euclidean":
                distance = (2 * distance + query_norms[part, None] + key_norms).clamp_min_(0)
            if exclude_self:
                distance[part - part[0], part] = torch.inf
            neighbors.append(_smallest(distance, k))
    return torch.cat(neighbors)


def _values(
    queries: Tensor, keys: Tensor, found: Tensor, metric: Metric, memory_budget: int
) -> tuple[Tensor, Tensor]:
    """Distances or similarities ``(m, k)`` of the neighbours that were found, and their order."""
    if metric == "cosine":
        queries, keys = unit_rows(queries), unit_rows(keys)
    block = max(1, memory_budget // (found.shape[1] * keys.shape[1] * keys.element_size()))
    values = []
    for query, index in zip(queries.split(block), found.split(block), strict=True):
        near = keys[index]  # (b, k, d)
        if metric == "euclidean":
            values.append(torch.linalg.vector_norm(near - query[:, None], dim=2))
        else:
            values.append((near * query[:, None]).sum(dim=2))
    value = torch.cat(values)
    order = value.argsort(dim=1, stable=True, descending=metric != "euclidean")
    return value.gather(1, order), found.gather(1, order)


def _smallest(values: Tensor, k: int) -> Tensor:
    """Columns of the ``k`` smallest values of each row, smallest first, among equals lowest first.

    ``topk`` leaves open which of several equal values it takes. Where more than ``k`` are at most
    as large as its largest, the lowest columns that hold this are taken instead.
    """
    top = values.topk(k, dim=1, largest=False)
    columns = top.indices.sort(dim=1).values  # (b, k)
    largest = top.values[:, -1:]
    tied = ((values <= largest).sum(dim=1) > k).nonzero()[:, 0]
    if len(tied):
        below, level = values[tied] < largest[tied], values[tied] == largest[tied]
        room = k - below.sum(dim=1, keepdim=True)
        taken = below | (level & (level.cumsum(dim=1) <= room))
        columns[tied] = taken.nonzero()[:, 1].view(-1, k)
    order = values.gather(1, columns).argsort(dim=1, stable=True)
    return columns.gather(1, order)
