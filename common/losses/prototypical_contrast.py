"""Prototypical contrast: tell the prototype of a sample's cluster from all others."""

import torch
from torch import Tensor

from common.errors import require
from common.losses._pairs import check_columns, check_labels, check_rows, check_temperature
from common.losses._similarity import unit_rows
from common.losses._streaming import streamed_logsumexp


def prototypical_contrast(
    z: Tensor,
    prototypes: Tensor,
    assignment: Tensor,
    *,
    temperature: float | Tensor,
    block_entries: int | None = None,
) -> Tensor:
    r"""Cross-entropy of each sample's prototype among all, each at its own temperature.

    .. math::
        \mathcal{L} = -\frac{1}{n} \sum_i \log
            \frac{e^{\cos(z_i, c_{a_i}) / \phi_{a_i}}}{\sum_b e^{\cos(z_i, c_b) / \phi_b}}

    Memory is O((n + k) d). Embeddings and prototypes are normalised here, in at least float32; the
    similarity is multiplied by 1 / temperature. The gradient reaches the prototypes too, unless
    they are detached, as cluster centroids are.

    Args:
        z: ``(n, d)`` embeddings, any scale.
        prototypes: *c*, ``(k, d)``, any scale.
        assignment: *a*, ``(n,)`` int64 cluster of each sample, in ``[0, k)``.
        temperature: :math:`\phi`, one positive number or a tensor ``(k,)``, such as
            :func:`concentration` estimates.
        block_entries: similarities that exist at once; any number gives the same loss.

    Returns:
        Scalar, float32 (float64 for float64 input).

    Raises:
        ArgumentError: a shape does not fit, or ``temperature`` is not positive.

    Distributed: nothing to exchange; the prototypes are the same on every rank, and each has the
    mean over its own rows.

    Source:
        PCL, Li et al., ICLR 2021, equation 11 (arXiv 2005.04966), with all prototypes as negatives;
        its ProtoNCE is the sum of :func:`~common.losses.info_nce` and this, averaged over several
        clusterings.

    Example:
        >>> z, prototypes = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> prototypical_contrast(z, prototypes, torch.tensor([0, 1]), temperature=1.0)
        tensor(0.3133)
    """
    check_rows("z", z)
    check_columns("prototypes", prototypes, z)
    check_labels("assignment", assignment, len(z))
    k = len(prototypes)
    if isinstance(temperature, Tensor) and temperature.ndim:
        require(temperature.shape == (k,), "temperature", tuple(temperature.shape), f"({k},)")
        temperature = temperature[:, None].to(torch.promote_types(z.dtype, torch.float32))
    else:
        check_temperature(temperature)
    with torch.autocast(z.device.type, enabled=False):
        unit, columns = unit_rows(z), unit_rows(prototypes) / temperature
        lse = streamed_logsumexp(unit, columns, block_entries=block_entries)  # (n,)
        return (lse - (unit * columns[assignment]).sum(dim=1)).mean()


def concentration(
    z: Tensor,
    prototypes: Tensor,
    assignment: Tensor,
    *,
    temperature: float,
    smoothing: float = 10.0,
) -> Tensor:
    r"""Temperature of each prototype from the spread of its members; carries no gradient.

    .. math::
        \phi_a = \frac{\sum_{i:\, a_i = a} |z_i - c_a|}{n_a \log(n_a + \text{smoothing})}

    Clusters of fewer than two members get the largest of the others; then all are clipped to their
    10th and 90th percentile and scaled to the mean ``temperature``. A loose cluster is so given a
    higher temperature, which pulls its members closer. Nothing is normalised here: pass what was
    clustered, unit rows for a spherical clustering.

    Args:
        z: ``(n, d)`` embeddings of the whole data set.
        prototypes: *c*, ``(k, d)``.
        assignment: *a*, ``(n,)`` int64 cluster of each sample, in ``[0, k)``.
        temperature: mean over the prototypes.
        smoothing: keeps small clusters from extreme values, at least 1.

    Returns:
        ``(k,)``, float32 (float64 for float64 input). All equal ``temperature`` if no cluster has
        two members apart.

    Raises:
        ArgumentError: a shape does not fit, or a number is out of its range.

    Source:
        PCL, Li et al., ICLR 2021, equation 12 (arXiv 2005.04966); percentiles as in its code.

    Example:
        >>> z = torch.tensor([[0.0], [2.0], [10.0], [14.0]])
        >>> prototypes, clusters = torch.tensor([[1.0], [12.0]]), torch.tensor([0, 0, 1, 1])
        >>> concentration(z, prototypes, clusters, temperature=0.2)
        tensor([0.1467, 0.2533])
    """
    check_rows("z", z)
    check_columns("prototypes", prototypes, z)
    check_labels("assignment", assignment, len(z))
    check_temperature(temperature)
    require(smoothing >= 1, "smoothing", smoothing, "at least 1")
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        dtype = torch.promote_types(z.dtype, torch.float32)
        distance = (z.to(dtype) - prototypes.to(dtype)[assignment]).norm(dim=1)  # (n,)
        zeros = distance.new_zeros(len(prototypes))
        size = zeros.index_add(0, assignment, torch.ones_like(distance))
        spread = zeros.index_add(0, assignment, distance)
        phi = spread / (size.clamp(min=1) * (size + smoothing).log().clamp(min=1e-12))
        several = size > 1
        phi = phi.where(several, phi.where(several, 0).amax())
        low, high = phi.quantile(phi.new_tensor([0.1, 0.9]))
        phi = phi.clamp(low, high)
        mean = phi.mean()
        return torch.where(mean > 0, temperature * phi / mean, temperature)
