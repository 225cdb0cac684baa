"""Contrast of every node with its weighted neighbourhood, against all other nodes."""

import torch
from torch import Tensor, nn

from common.adjacency import csr_tensor, cumulative_power, quiet_sparse, sparse_transpose
from common.errors import ArgumentError, require
from common.losses._similarity import (
    LARGEST_INVERSE_TEMPERATURE,
    WeightedExponentialSums,
    unit_rows,
)
from common.losses._streaming import self_logsumexp


def neighbor_contrast(
    z: Tensor,
    weights: Tensor,
    *,
    inverse_temperature: float = 1.0,
    transposed: Tensor | None = None,
    epsilon: float = 1e-8,
    block_entries: int | None = None,
) -> Tensor:
    r"""Neighbour-contrast loss with weighted positives, exact, in O(n d + nnz) memory.

    .. math::
        \mathcal{L} = -\frac{1}{n} \sum_i \log \left(
            \frac{\sum_j \Gamma_{ij} e^{\tau s_{ij}}}{\sum_j e^{\tau s_{ij}}} + \epsilon \right),
        \qquad s_{ij} = \cos(z_i, z_j),\ s_{ii} = 0

    The similarity of a node with itself is set to 0, not left out: it adds :math:`\Gamma_{ii}`
    above and 1 below. Embeddings are normalised here, in at least float32; a zero row has
    similarity 0 to all others and gradient 0.

    Args:
        z: ``(n, d)`` embeddings of all nodes, any scale.
        weights: :math:`\Gamma`, ``(n, n)`` non-negative, sparse CSR (a dense one is converted).
            The r-th power of the normalised adjacency gives the loss of SCGC.
        inverse_temperature: :math:`\tau`, which multiplies the similarity; at most 60 in magnitude.
        transposed: ``sparse_transpose(weights)``, to save its computation at every call.
        epsilon: keeps the logarithm finite for a node without positives.
        block_entries: entries of the similarity matrix that exist at once; any value gives the
            same loss. By default what suits the device.

    Returns:
        Scalar, float32 (float64 for float64 input).

    Raises:
        ArgumentError: a shape does not fit, or ``inverse_temperature`` is out of range.

    Distributed: no collective; every rank evaluates the nodes it is given as one whole graph.

    Source:
        SCGC, Kulatilleke et al., arXiv 2204.12656; first used by Graph-MLP (Hu et al., 2021).

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> path = torch.tensor([[1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3], [0, 1 / 2, 1 / 2]])
        >>> neighbor_contrast(z, path)
        tensor(1.0429)
    """
    check_contrast(z, weights, inverse_temperature)
    with torch.autocast(z.device.type, enabled=False):
        unit = unit_rows(z)
        positive = positive_sums(unit, weights, inverse_temperature, transposed)  # (n,)
        own = torch.arange(len(z), device=z.device)
        others = self_logsumexp(unit, float(inverse_temperature), own, block_entries)  # (n,)
        total = others.exp() + 1
        return -(positive / total + epsilon).log().mean()


def influence_augmented_contrast(
    z: Tensor,
    adjacency: Tensor,
    *,
    order: int,
    inverse_temperature: float = 1.0,
    epsilon: float = 1e-8,
) -> Tensor:
    r"""Neighbour contrast whose positives are weighted by their influence within ``order`` hops.

    :func:`neighbor_contrast` with :math:`\Gamma = A + A^2 + \dots + A^{order}`, so that close
    neighbours, reached by every power, weigh most. The powers are computed at every call; to
    train, compute them once with :func:`common.adjacency.cumulative_power`.

    Args:
        z: ``(n, d)`` embeddings of all nodes, any scale.
        adjacency: *A*, ``(n, n)`` row-stochastic, sparse CSR.
        order: number of hops, at least 1.
        inverse_temperature: multiplies the similarity.
        epsilon: keeps the logarithm finite.

    Source:
        SCGC* (IAC loss), Kulatilleke et al., arXiv 2204.12656.

    Example:
        >>> from common.adjacency import row_normalized_adjacency
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> path = row_normalized_adjacency(torch.tensor([[0, 1], [1, 2]]), 3)
        >>> influence_augmented_contrast(z, path, order=2)
        tensor(0.3731)
    """
    return neighbor_contrast(
        z,
        cumulative_power(adjacency, order),
        inverse_temperature=inverse_temperature,
        epsilon=epsilon,
    )


class FixedWeights(nn.Module):
    """``(n, n)`` sparse weights and their transpose, computed once, as a module that moves between
    devices and can be copied (which sparse CSR buffers cannot)."""

    crow: Tensor
    col: Tensor
    values: Tensor
    transposed_crow: Tensor
    transposed_col: Tensor
    transposed_values: Tensor

    def __init__(self, weights: Tensor):
        super().__init__()
        weights = as_csr(weights)
        self.shape = tuple(weights.shape)
        for prefix, matrix in (("", weights), ("transposed_", sparse_transpose(weights))):
            self.register_buffer(f"{prefix}crow", matrix.crow_indices().clone(), persistent=False)
            self.register_buffer(f"{prefix}col", matrix.col_indices().clone(), persistent=False)
            self.register_buffer(f"{prefix}values", matrix.values().clone(), persistent=False)

    def forward(self) -> tuple[Tensor, Tensor]:
        """The weights and their transpose, both sparse CSR."""
        plain = csr_tensor(self.crow, self.col, self.values, self.shape)
        transposed = csr_tensor(
            self.transposed_crow, self.transposed_col, self.transposed_values, self.shape
        )
        return plain, transposed


class NeighborContrast(nn.Module):
    """:func:`neighbor_contrast` over a fixed graph, whose weights are set up once.

    Args:
        weights: ``(n, n)`` sparse CSR (or dense) weights of the positives.
        inverse_temperature: multiplies the similarity.
    """

    def __init__(self, weights: Tensor, inverse_temperature: float = 1.0):
        super().__init__()
        self.weights = FixedWeights(weights)
        self.inverse_temperature = inverse_temperature

    def forward(self, z: Tensor) -> Tensor:
        weights, transposed = self.weights()
        return neighbor_contrast(
            z, weights, inverse_temperature=self.inverse_temperature, transposed=transposed
        )


def positive_sums(
    unit: Tensor, weights: Tensor, inverse_temperature: float, transposed: Tensor | None
) -> Tensor:
    r""":math:`\sum_j \Gamma_{ij} e^{\tau s_{ij}}` for unit rows, ``(n,)``."""
    weights = as_csr(weights).to(unit.dtype)
    transposed = sparse_transpose(weights) if transposed is None else transposed.to(unit.dtype)
    return WeightedExponentialSums.apply(unit, weights, transposed, float(inverse_temperature))


def as_csr(weights: Tensor) -> Tensor:
    if weights.layout == torch.sparse_csr:
        return weights
    with quiet_sparse():
        return weights.to_sparse_csr()


def check_contrast(z: Tensor, weights: Tensor, inverse_temperature: float) -> None:
    if z.ndim != 2 or not z.is_floating_point():
        raise ArgumentError(f"z must be (n, d) floats, got {tuple(z.shape)} of {z.dtype}")
    if weights.shape != (len(z), len(z)):
        raise ArgumentError(
            f"weights must be (n, n) = ({len(z)}, {len(z)}) for z of {len(z)} rows, "
            f"got {tuple(weights.shape)}"
        )
    require(
        abs(inverse_temperature) <= LARGEST_INVERSE_TEMPERATURE,
        "inverse_temperature",
        inverse_temperature,
        f"at most {LARGEST_INVERSE_TEMPERATURE:g} in magnitude",
    )
