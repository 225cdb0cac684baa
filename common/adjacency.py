"""Row-stochastic adjacency of an undirected graph and its powers, as sparse matrices.

Built once per graph, so the work is SciPy's; what comes out is a torch CSR matrix.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from common.errors import ArgumentError


def row_normalized_adjacency(edge_index: Tensor, n_nodes: int) -> Tensor:
    r"""Random-walk matrix with self-loops, :math:`A = D^{-1}(A_0 + I)`.

    :math:`A_0` is 0/1 and symmetric: an edge given in one direction counts in both, a repeated edge
    counts once, a self-loop is the identity's own. An isolated node keeps itself with weight 1.

    Args:
        edge_index: ``(2, e)`` node ids in ``[0, n_nodes)``.
        n_nodes: *n*.

    Returns:
        ``(n, n)`` sparse CSR matrix, float32, on the device of ``edge_index``; its rows sum to 1.

    Raises:
        ArgumentError: ``edge_index`` has another shape or names a node that does not exist.

    Source:
        SCGC, Kulatilleke et al., arXiv 2204.12656 (official code).

    Example:
        >>> row_normalized_adjacency(torch.tensor([[0, 1], [1, 2]]), 3).to_dense()
        tensor([[0.5000, 0.5000, 0.0000],
                [0.3333, 0.3333, 0.3333],
                [0.0000, 0.5000, 0.5000]])
    """
    if edge_index.ndim != 2 or len(edge_index) != 2:
        raise ArgumentError(f"edge_index must be (2, e), got {tuple(edge_index.shape)}")
    if edge_index.numel() and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < n_nodes:
        raise ArgumentError(
            f"edge_index names nodes {int(edge_index.min())} to {int(edge_index.max())}, "
            f"but the {n_nodes} nodes are 0 to {n_nodes - 1}"
        )
    source, target = edge_index.cpu().numpy()
    links = sp.coo_array((np.ones(len(source)), (source, target)), shape=(n_nodes, n_nodes)).tocsr()
    with_self_loops = ((links + links.T + sp.eye_array(n_nodes)) > 0).astype(np.float64)
    degree = np.asarray(with_self_loops.sum(axis=1)).ravel()
    normalized = sp.diags_array(1 / degree) @ with_self_loops
    return _to_torch(normalized, torch.float32, edge_index.device)


def adjacency_power(adjacency: Tensor, order: int) -> Tensor:
    """``adjacency`` to the power ``order``; for row-stochastic input the rows again sum to 1.

    Args:
        adjacency: ``(n, n)`` sparse CSR matrix.
        order: at least 1.

    Example:
        >>> path = row_normalized_adjacency(torch.tensor([[0, 1], [1, 2]]), 3)
        >>> adjacency_power(path, 2).to_dense()[0]
        tensor([0.4167, 0.4167, 0.1667])
    """
    *_, power = _powers(adjacency, order)
    return _to_torch(power, adjacency.dtype, adjacency.device)


def cumulative_power(adjacency: Tensor, order: int) -> Tensor:
    r"""Influence of the ``order``-hop neighbourhood, :math:`\Gamma = A + A^2 + \dots + A^{order}`.

    Args:
        adjacency: ``(n, n)`` sparse CSR matrix; for row-stochastic input rows sum to ``order``.
        order: at least 1.

    Source:
        SCGC, Kulatilleke et al., arXiv 2204.12656 (influence augmented contrast).

    Example:
        >>> path = row_normalized_adjacency(torch.tensor([[0, 1], [1, 2]]), 3)
        >>> cumulative_power(path, 2).to_dense()[1]
        tensor([0.6111, 0.7778, 0.6111])
    """
    total, *higher = _powers(adjacency, order)
    for power in higher:
        total = total + power
    return _to_torch(total, adjacency.dtype, adjacency.device)


def sparse_transpose(matrix: Tensor) -> Tensor:
    """The transpose of a sparse CSR matrix, again in CSR (torch's own ``.t()`` gives CSC)."""
    return _to_torch(_to_scipy(matrix).T, matrix.dtype, matrix.device)


def _powers(adjacency: Tensor, order: int) -> Iterator[sp.csr_array]:
    if order < 1:
        raise ArgumentError(f"order must be at least 1, got {order}")
    matrix = _to_scipy(adjacency)
    power = matrix
    yield power
    for _ in range(order - 1):
        power = power @ matrix
        yield power


def _to_scipy(matrix: Tensor) -> sp.csr_array:
    if matrix.layout != torch.sparse_csr:
        raise ArgumentError(f"expected a sparse CSR matrix, got layout {matrix.layout}")
    parts = (matrix.values().double(), matrix.col_indices(), matrix.crow_indices())
    rows, columns = matrix.shape
    return sp.csr_array(tuple(part.cpu().numpy() for part in parts), shape=(rows, columns))


def _to_torch(matrix: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    csr = matrix.tocsr()
    csr.sort_indices()
    return csr_tensor(
        torch.from_numpy(csr.indptr).long(),
        torch.from_numpy(csr.indices).long(),
        torch.from_numpy(csr.data).to(dtype),
        csr.shape,
    ).to(device)


def csr_tensor(crow: Tensor, col: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    """A sparse CSR matrix from parts known to be valid."""
    with quiet_sparse():
        return torch.sparse_csr_tensor(crow, col, values, tuple(shape), check_invariants=False)


@contextmanager
def quiet_sparse() -> Iterator[None]:
    """Keeps torch's once-per-process notice that sparse CSR is in beta out of the terminal."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        yield
