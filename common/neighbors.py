"""Exact nearest neighbours, and the graphs they make."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from common.adjacency import csr_tensor
from common.data.arrays import dense_tensor
from common.errors import ArgumentError, require, require_int
from common.losses._similarity import unit_rows

Metric = Literal["euclidean", "cosine", "dot"]
Engine = Literal["torch", "faiss"]
METRICS = ("euclidean", "cosine", "dot")
BLOCK_ENTRIES = 1 << 22


def knn_graph(
    x: Any,
    n_neighbors: int,
    *,
    metric: Metric = "euclidean",
    block_size: int | None = None,
    engine: Engine = "torch",
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
            not depend on it, save for scores that agree to rounding. faiss has its own blocks.
        engine: as for :func:`nearest_neighbors`; ``"faiss"`` searches in float32.

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
    x = _checked_rows(x, metric)
    n = len(x)
    n_neighbors = require_int("n_neighbors", n_neighbors, 1, n - 1)
    require(engine in ("torch", "faiss"), "engine", engine, "torch or faiss")
    if block_size is not None:
        block_size = require_int("block_size", block_size, 1)

    (x,) = _prepared({"x": x.float() if engine == "faiss" else x.double()}, metric)
    if engine == "faiss":
        found = _faiss_search(x, x, n_neighbors, metric, exclude_self=True)
    else:
        block = block_size or max(1, BLOCK_ENTRIES // n)
        found = _search(x, x, n_neighbors, metric, block, exclude_self=True)
    source = torch.arange(n, device=x.device).repeat_interleave(n_neighbors)
    return torch.stack([source, found.flatten()])


def mutual_knn_graph(
    x: Any,
    n_neighbors: int,
    *,
    metric: Metric = "euclidean",
    block_size: int | None = None,
    engine: Engine = "torch",
) -> Tensor:
    """The pairs of rows that are among the nearest neighbours of each other.

    Args:
        x, n_neighbors, metric, block_size, engine: as for :func:`knn_graph`.

    Returns:
        ``(n, n)`` sparse CSR matrix, symmetric, on the device of ``x``, with at most
        ``n_neighbors`` entries a row: Euclidean distances (a stored 0 for equal rows), cosines or
        inner products, float64 for float64 rows and else float32.

    Raises:
        ArgumentError: as for :func:`knn_graph`.

    Example:
        >>> mutual_knn_graph(torch.tensor([[0.0], [1.0], [3.0]]), 1).to_dense()
        tensor([[0., 1., 0.],
                [1., 0., 0.],
                [0., 0., 0.]])
    """
    x = _checked_rows(x, metric)
    edges = knn_graph(x, n_neighbors, metric=metric, block_size=block_size, engine=engine)
    n = len(x)
    forth, back = edges[0] * n + edges[1], edges[1] * n + edges[0]
    edges = edges[:, torch.isin(forth, back)]
    return edges_to_sparse(edges, n, _scores(x, edges, metric))


def threshold_graph(
    x: Any, threshold: float, *, metric: Metric = "euclidean", block_size: int | None = None
) -> Tensor:
    """The pairs of different rows that are near enough, found by exhaustive search.

    Scores are computed in float64, a block of rows at a time; equality counts as near enough, to
    within rounding. Mind that the number of pairs may grow with the square of *n*.

    Args:
        x: as for :func:`knn_graph`.
        threshold: largest Euclidean distance, smallest cosine or smallest inner product.
        metric, block_size: as for :func:`knn_graph`.

    Returns:
        ``(n, n)`` sparse CSR matrix as of :func:`mutual_knn_graph`.

    Raises:
        ArgumentError: an argument out of its range, or values of ``x`` that are not finite.

    Example:
        >>> threshold_graph(torch.tensor([[0.0], [1.0], [3.0]]), 2.0).to_dense()
        tensor([[0., 1., 0.],
                [1., 0., 2.],
                [0., 2., 0.]])
    """
    x = _checked_rows(x, metric)
    n = len(x)
    require(not math.isnan(threshold), "threshold", threshold, "a number")
    if block_size is not None:
        block_size = require_int("block_size", block_size, 1)
    (rows,) = _prepared({"x": x.double()}, metric)
    limit = -threshold
    if metric == "euclidean":
        limit = threshold**2 if threshold >= 0 else -math.inf
    parts = []
    for part in torch.arange(n, device=x.device).split(block_size or max(1, BLOCK_ENTRIES // n)):
        near = _dissimilarities(rows[part], rows, metric) <= limit  # (b, n)
        source, target = near.nonzero().T
        upper = part[source] < target  # the other half is its mirror image
        parts.append(torch.stack([part[source], target])[:, upper])
    edges = torch.cat(parts, dim=1)
    edges = torch.cat([edges, edges.flip(0)], dim=1)
    return edges_to_sparse(edges, n, _scores(x, edges, metric))


def edges_to_sparse(edge_index: Tensor, n_nodes: int, values: Tensor | None = None) -> Tensor:
    """The sparse matrix with ``values[e]`` at row and column ``edge_index[:, e]``.

    Args:
        edge_index: ``(2, e)`` node ids in ``[0, n_nodes)``, each pair at most once, in any order.
        n_nodes: *n*.
        values: ``(e,)``, default 1 in float32.

    Returns:
        ``(n, n)`` sparse CSR matrix on the device of ``edge_index``, columns in order.

    Raises:
        ArgumentError: another shape, a node that does not exist or a repeated pair.

    Example:
        >>> edges_to_sparse(knn_graph(torch.tensor([[0.0], [1.0], [3.0]]), 1), 3).to_dense()
        tensor([[0., 1., 0.],
                [1., 0., 0.],
                [0., 1., 0.]])
    """
    require(
        edge_index.ndim == 2 and len(edge_index) == 2 and not edge_index.is_floating_point(),
        "edge_index",
        (edge_index.dtype, *edge_index.shape),
        "integers of shape (2, e)",
    )
    if edge_index.numel():
        lowest, highest = (int(extreme) for extreme in edge_index.aminmax())
        require(lowest >= 0, "edge_index", lowest, "at least 0 everywhere")
        require(highest < n_nodes, "edge_index", highest, f"less than n_nodes={n_nodes} everywhere")
    if values is None:
        values = torch.ones(edge_index.shape[1], device=edge_index.device)
    expected = f"one value for each of the {edge_index.shape[1]} edges"
    require(values.shape == edge_index.shape[1:], "values", tuple(values.shape), expected)
    place, order = (edge_index[0] * n_nodes + edge_index[1]).sort()
    if (place.diff() == 0).any():
        raise ArgumentError("edge_index must name no pair of nodes twice")
    row, col = edge_index[:, order]
    crow = torch.searchsorted(row, torch.arange(n_nodes + 1, device=row.device))
    return csr_tensor(crow, col, values[order], (n_nodes, n_nodes))


def nearest_neighbors(
    queries: Tensor,
    keys: Tensor,
    n_neighbors: int,
    *,
    metric: Metric = "euclidean",
    exclude_self: bool = False,
    engine: Engine = "torch",
    memory_budget: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The nearest keys of every query, by exhaustive search over blocks of queries.

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
        engine: ``"torch"`` runs on any device. ``"faiss"`` takes a quarter of the time or less on
            the CPU, where it must be; it searches in float32, in blocks of its own size, and which
            of equally near keys it finds is open. Not for macOS, where faiss and torch each bring
            an OpenMP runtime.
        memory_budget: bytes for a block of scores. None: 4 MiB on the CPU, 256 MiB elsewhere.

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
        memory_budget = 2**22 if keys.device.type == "cpu" else 2**28
    memory_budget = require_int("memory_budget", memory_budget, 1)

    require(engine in ("torch", "faiss"), "engine", engine, "torch or faiss")
    dtype = torch.promote_types(torch.promote_types(queries.dtype, keys.dtype), torch.float32)
    queries, keys = queries.detach().to(dtype), keys.detach().to(dtype)
    with torch.autocast(keys.device.type, enabled=False):
        left, right = _prepared({"queries": queries, "keys": keys}, metric)
        if engine == "faiss":
            found = _faiss_search(left, right, n_neighbors, metric, exclude_self=exclude_self)
        else:
            block = max(1, memory_budget // (len(keys) * keys.element_size()))
            found = _search(left, right, n_neighbors, metric, block, exclude_self=exclude_self)
        found = found.sort(dim=1).values
        source = torch.arange(len(queries), device=keys.device).repeat_interleave(n_neighbors)
        edges = torch.stack([source, found.flatten()])
        values = _scores(queries, edges, metric, keys).view_as(found)
    order = values.argsort(dim=1, stable=True, descending=metric != "euclidean")
    return values.gather(1, order), found.gather(1, order)


def _checked_rows(x: Any, metric: Metric) -> Tensor:
    """``x`` as a dense real matrix of at least two rows."""
    x = dense_tensor("x", x)
    matrix = x.ndim == 2 and len(x) >= 2 and not x.is_complex()
    require(matrix, "x", (x.dtype, *x.shape), "real and (n, d) with n of at least 2")
    require(metric in METRICS, "metric", metric, f"one of {', '.join(METRICS)}")
    return x


def _is_matrix(x: Any) -> bool:
    dense = isinstance(x, Tensor) and x.layout == torch.strided and not x.is_complex()
    return dense and x.ndim == 2 and x.numel() > 0


def _prepared(tables: dict[str, Tensor], metric: Metric) -> list[Tensor]:
    """Tables, the last one the keys, as the search wants them: of unit length or centred."""
    rows = list(tables.values())
    if metric == "cosine":
        rows = [unit_rows(x) for x in rows]
    elif metric == "euclidean":
        # Far from the origin |x|^2 + |y|^2 - 2 x.y cancels. The median is a value of the feature,
        # so that whole numbers stay whole and equal distances equal; a mean would break the ties.
        keys = rows[-1]
        origin = keys.sort(dim=0).values[len(keys) // 2]
        rows = [x - origin for x in rows]
    for name, x in zip(tables, rows, strict=True):
        if not x.square().sum(dim=1).isfinite().all():
            raise ArgumentError(f"{name} has values that are not finite, or whose squares are not")
    return rows


def _dissimilarities(queries: Tensor, keys: Tensor, metric: Metric) -> Tensor:
    """Squared distances or negative inner products ``(b, n)`` of prepared rows."""
    products = -queries @ keys.T
    if metric != "euclidean":
        return products
    norms = queries.square().sum(dim=1, keepdim=True), keys.square().sum(dim=1)
    return (2 * products + norms[0] + norms[1]).clamp_min_(0)


def _search(
    queries: Tensor, keys: Tensor, k: int, metric: Metric, block_size: int, *, exclude_self: bool
) -> Tensor:
    """Indices ``(m, k)`` of the nearest keys, nearest first, of prepared rows."""
    neighbors = []
    for part in torch.arange(len(queries), device=keys.device).split(block_size):
        distance = _dissimilarities(queries[part], keys, metric)  # (b, n)
        if exclude_self:
            distance[part - part[0], part] = torch.inf
        neighbors.append(_smallest(distance, k))
    return torch.cat(neighbors)


def _faiss_search(
    queries: Tensor, keys: Tensor, k: int, metric: Metric, *, exclude_self: bool
) -> Tensor:
    """:func:`_search` by faiss's exhaustive search over float32 rows on the CPU."""
    if keys.device.type != "cpu" or keys.dtype != torch.float32:
        raise ArgumentError(
            f"engine 'faiss' takes float32 or half rows on the CPU, "
            f"got {keys.dtype} on {keys.device}"
        )
    try:
        import faiss
    except ImportError as missing:
        raise ArgumentError("engine 'faiss' needs the package faiss-cpu or faiss-gpu") from missing
    measure = faiss.METRIC_L2 if metric == "euclidean" else faiss.METRIC_INNER_PRODUCT
    rows = queries.contiguous().numpy(), keys.contiguous().numpy()
    values, indices = map(torch.from_numpy, faiss.knn(*rows, k + exclude_self, metric=measure))
    indices, order = indices.sort(dim=1)
    values = values.gather(1, order)
    order = values.argsort(dim=1, stable=True, descending=metric != "euclidean")
    indices = indices.gather(1, order)
    if exclude_self:  # to the end, where the farthest is if the row itself was not found
        own = indices == torch.arange(len(indices))[:, None]
        indices = indices.gather(1, own.int().argsort(dim=1, stable=True))[:, :k]
    return indices


def _scores(queries: Tensor, edges: Tensor, metric: Metric, keys: Tensor | None = None) -> Tensor:
    """Distances or similarities ``(e,)`` of the pairs ``(2, e)``, a block at a time."""
    dtype = torch.promote_types(queries.dtype, torch.float32)
    queries = queries.to(dtype)
    keys = queries if keys is None else keys.to(dtype)
    if metric == "cosine":
        queries, keys = unit_rows(queries), unit_rows(keys)
    scores = [torch.empty(0, dtype=dtype, device=keys.device)]
    for part in edges.split(max(1, BLOCK_ENTRIES // 4 // keys.shape[1]), dim=1):
        left, right = queries[part[0]], keys[part[1]]  # (b, d)
        if metric == "euclidean":
            scores.append(torch.linalg.vector_norm(left - right, dim=1))
        else:
            scores.append((left * right).sum(dim=1))
    return torch.cat(scores)


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
