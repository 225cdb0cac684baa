"""Decoupled contrast: the positive does not compete with the negatives."""

import torch
from torch import Tensor

from common.losses._pairs import PairwiseContrast, check_negatives, contrast_pairs


def decoupled_contrast(
    anchor: Tensor,
    positive: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float | Tensor,
    distributed: bool = False,
    block_entries: int | None = None,
) -> Tensor:
    r"""NT-Xent without the positive in the denominator, in O(n d) memory.

    .. math::
        \mathcal{L} = \frac{1}{2n} \sum_{i=1}^{2n} \Big(
            -\cos(z_i, z_{i'}) / T + \log \sum_{j \neq i, i'} e^{\cos(z_i, z_j) / T} \Big)

    The gradient of NT-Xent has a factor that fades as the positive is found, the sooner the fewer
    the negatives; here it is left out, which helps small batches. Anchors and negatives are those
    of :func:`~common.losses.nt_xent`. The loss may be negative. Embeddings are normalised here, in
    at least float32; the similarity is multiplied by 1 / temperature.

    Args:
        anchor: ``(n, d)`` embeddings of the first view, any scale.
        positive: ``(n, d)``; row *i* is the other view of row *i* of ``anchor``.
        negatives: ``(m, d)``, used instead of the other rows.
        temperature: *T*, positive; a scalar tensor receives its gradient.
        distributed: see below.
        block_entries: similarities that exist at once; any number gives the same loss.

    Returns:
        Scalar, float32 (float64 for float64 input).

    Raises:
        ArgumentError: a shape does not fit, ``temperature`` is not positive, or there is a single
            row and no ``negatives``.

    Distributed: rows are sharded over the ranks; the rows of all of them serve. ``negatives`` are
    used as they are, the same on every rank.

    Source:
        DCL, Yeh et al., ECCV 2022, equation 6 (arXiv 2110.06848).

    Example:
        >>> z = torch.eye(2)
        >>> decoupled_contrast(z, z, temperature=1.0)  # ln 2 - 1
        tensor(-0.3069)
    """
    with torch.autocast(anchor.device.type, enabled=False):
        own, against, n_negatives = contrast_pairs(
            anchor, positive, negatives, temperature, distributed, block_entries
        )
        check_negatives(n_negatives)
        return (against(1.0) - own).mean()


class DecoupledContrast(PairwiseContrast):
    """:func:`decoupled_contrast` with a fixed ``temperature``, ``distributed`` or not."""

    objective = staticmethod(decoupled_contrast)
