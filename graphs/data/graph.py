"""From arrays to a checked attributed graph."""

from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import remove_self_loops, to_undirected

from common.data.arrays import as_tensor, dense_tensor
from common.data.checksum import array_sha256
from common.errors import ArgumentError, require_int
from common.neighbors import knn_graph


def attributed_graph(
    x: Any,
    edge_index: Any = None,
    y: Any = None,
    *,
    n_clusters: int | None = None,
    n_neighbors: int = 3,
    name: str = "custom",
) -> Data:
    """Checks features, edges and labels and brings them into one form.

    Args:
        x: ``(n, d)`` finite features, as NumPy array, SciPy sparse matrix or tensor.
        edge_index: ``(2, e)`` node ids in ``[0, n)``; direction, repetition and self-loops do not
            matter. A node without an edge is allowed. None: the nearest neighbours of every node.
        y: ``(n,)`` integer labels, any numbering; None if there are none.
        n_clusters: number of clusters to look for; default the number of classes in ``y``, needed
            if there are no labels.
        n_neighbors: of every node, if there is no ``edge_index``.
        name: how the graph is called.

    Returns:
        ``Data`` with ``x (n, d)`` float32; ``edge_index (2, e)`` int64, both directions of every
        edge, sorted, without self-loops; ``y (n,)`` int64 in ``0..classes-1`` or None;
        ``n_clusters``; ``name``; and ``checksum``, the SHA-256 of these arrays.

    Raises:
        ArgumentError: names the argument that is not as described.

    Example:
        >>> graph = attributed_graph(torch.eye(3), [[0, 1, 1], [1, 0, 2]], y=[5, 5, 7])
        >>> graph.edge_index.tolist(), graph.y.tolist(), graph.n_clusters
        ([[0, 1, 1, 2], [1, 0, 2, 1]], [0, 0, 1], 2)
    """
    x = _features(x)
    n = len(x)
    edge_index = _edges(knn_graph(x, n_neighbors) if edge_index is None else edge_index, n)
    if y is not None:
        y = _labels(y, n)
        n_clusters = int(y.max()) + 1 if n_clusters is None else n_clusters
    if n_clusters is None:
        raise ArgumentError("n_clusters must be given for a graph without labels y")
    n_clusters = require_int("n_clusters", n_clusters, 1, n)
    arrays = [array.numpy() for array in (x, edge_index, y) if array is not None]
    return Data(
        x=x,
        edge_index=edge_index,
        y=y,
        name=name,
        n_clusters=n_clusters,
        checksum=array_sha256(*arrays),
    )


def _features(x: Any) -> Tensor:
    x = dense_tensor("x", x).cpu()
    if x.ndim != 2 or x.is_complex():
        raise ArgumentError(f"x must be real and (n, d), got {x.dtype} of shape {tuple(x.shape)}")
    if len(x) < 2 or x.shape[1] < 1:
        raise ArgumentError(f"x must have at least 2 nodes and 1 feature, got {tuple(x.shape)}")
    x = x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if not (finite := x.isfinite()).all():
        node, feature = (~finite).nonzero()[0].tolist()
        raise ArgumentError(
            f"x must be finite, got {x[node, feature].item()} at node {node}, feature {feature} "
            f"({int((~finite).sum())} such values)"
        )
    return x


def _edges(edge_index: Any, n: int) -> Tensor:
    edge_index = as_tensor("edge_index", edge_index).cpu()
    if edge_index.ndim != 2 or len(edge_index) != 2:
        raise ArgumentError(f"edge_index must be (2, e), got shape {tuple(edge_index.shape)}")
    if edge_index.numel():
        edge_index = _integers("edge_index", edge_index)
        low, high = int(edge_index.min()), int(edge_index.max())
        if low < 0 or high >= n:
            raise ArgumentError(
                f"edge_index names node {low if low < 0 else high}, "
                f"but the {n} nodes are 0 to {n - 1}"
            )
    edges, _ = remove_self_loops(edge_index.long())
    return to_undirected(edges, num_nodes=n)


def _labels(y: Any, n: int) -> Tensor:
    y = as_tensor("y", y).cpu()
    if y.shape != (n,):
        raise ArgumentError(f"y must hold one label for each of {n} nodes, got {tuple(y.shape)}")
    return _integers("y", y).unique(return_inverse=True)[1]


def _integers(name: str, values: Tensor) -> Tensor:
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ArgumentError(f"{name} must hold integers, got {values.dtype}")
    return values.to_dense().long()
