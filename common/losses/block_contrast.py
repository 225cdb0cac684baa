"""Contrast of neighbours whose negatives are whole clusters: no quadratic term in the nodes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import ArgumentError, require
from common.losses._similarity import unit_rows
from common.losses.neighbor_contrast import FixedWeights, check_contrast, positive_sums


def block_contrast(
    z: Tensor,
    weights: Tensor,
    assignment: Tensor,
    n_clusters: int,
    *,
    inverse_temperature: float = 1.0,
    transposed: Tensor | None = None,
    epsilon: float = 1e-10,
) -> Tensor:
    r"""Positives over the edges, negatives between the *k* meta-nodes, in O(nnz d + k^2 d).

    .. math::
        \mathcal{L} =
            -\frac{1}{n} \sum_i \log \Big(\sum_j \Gamma_{ij} e^{\tau s_{ij}} + \epsilon\Big)
            + \frac{1}{k} \sum_a \log \Big(\sum_b e^{\tau u_{ab}} + \epsilon\Big)

    with :math:`s_{ij} = \cos(z_i, z_j)` and :math:`u_{ab} = \cos(c_a, c_b)` between the sums
    :math:`c_a` of the embeddings of cluster *a*; :math:`s_{ii} = u_{aa} = 0`. A cluster without a
    member takes part in neither sum nor mean. No gradient flows through the assignment.
    Embeddings are normalised here for *s*, but add up unnormalised in :math:`c_a`.

    Args:
        z: ``(n, d)`` embeddings of all nodes.
        weights: :math:`\Gamma`, ``(n, n)`` non-negative, sparse CSR (a dense one is converted).
        assignment: ``(n,)`` int64 cluster of each node, in ``[0, n_clusters)``.
        n_clusters: *k*.
        inverse_temperature: :math:`\tau`, which multiplies the similarity; at most 60 in magnitude.
        transposed: ``sparse_transpose(weights)``, to save its computation at every call.
        epsilon: keeps the logarithms finite.

    Returns:
        Scalar, float32 (float64 for float64 input).

    Raises:
        ArgumentError: a shape does not fit, or an assignment is outside ``[0, n_clusters)``.

    Distributed: no collective; every rank evaluates the nodes it is given as one whole graph.

    Source:
        PamC, Kulatilleke et al., arXiv 2209.14067 (official code: hard, detached meta-nodes).

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> path = torch.tensor([[1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3], [0, 1 / 2, 1 / 2]])
        >>> block_contrast(z, path, torch.tensor([0, 0, 1]), 2)
        tensor(0.3355)
    """
    check_contrast(z, weights, inverse_temperature)
    if assignment.shape != (len(z),):
        raise ArgumentError(f"assignment must be ({len(z)},), got {tuple(assignment.shape)}")
    sizes = _cluster_sizes(assignment, n_clusters)  # (k,)
    with torch.autocast(z.device.type, enabled=False):
        unit = unit_rows(z)
        positive = positive_sums(unit, weights, inverse_temperature, transposed)  # (n,)
        meta = unit_rows(_cluster_sums(z, assignment, n_clusters)[sizes > 0])  # (k, d)
        similarity = (meta @ meta.T).fill_diagonal_(0)  # (k, k)
        negative = (inverse_temperature * similarity).exp().sum(dim=1)  # (k,)
        return (negative + epsilon).log().mean() - (positive + epsilon).log().mean()


class BlockContrast(nn.Module):
    """:func:`block_contrast` over a fixed graph, whose weights are set up once.

    Args:
        weights: ``(n, n)`` sparse CSR (or dense) weights of the positives.
        n_clusters: *k*.
        inverse_temperature: multiplies the similarity.
    """

    def __init__(self, weights: Tensor, n_clusters: int, inverse_temperature: float = 1.0):
        super().__init__()
        self.weights = FixedWeights(weights)
        self.n_clusters = n_clusters
        self.inverse_temperature = inverse_temperature

    def forward(self, z: Tensor, assignment: Tensor) -> Tensor:
        weights, transposed = self.weights()
        return block_contrast(
            z,
            weights,
            assignment,
            self.n_clusters,
            inverse_temperature=self.inverse_temperature,
            transposed=transposed,
        )


def _cluster_sizes(assignment: Tensor, n_clusters: int) -> Tensor:
    expected = f"int64 in [0, n_clusters) = [0, {n_clusters})"
    require(assignment.dtype == torch.int64, "assignment", assignment.dtype, expected)
    lowest, highest = assignment.aminmax()
    require(int(lowest) >= 0, "assignment", int(lowest), expected)
    require(int(highest) < n_clusters, "assignment", int(highest), expected)
    return torch.bincount(assignment, minlength=n_clusters)


def _cluster_sums(z: Tensor, assignment: Tensor, n_clusters: int) -> Tensor:
    """Sums of the rows of each cluster, ``(k, d)``, in units of the largest entry so that none
    overflows; the cosine between sums does not see the unit."""
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    largest = z.detach().abs().amax()
    members = F.one_hot(assignment, n_clusters).to(z.dtype)  # (n, k)
    return members.T @ (z / largest.where(largest > 0, 1))
