"""NT-Xent: both views of a sample find each other among all rows of both views."""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.losses._pairs import PairwiseContrast, contrast_pairs


def nt_xent(
    anchor: Tensor,
    positive: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float | Tensor,
    distributed: bool = False,
    block_entries: int | None = None,
) -> Tensor:
    r"""Normalised temperature-scaled cross-entropy of two views, in O(n d) memory.

    .. math::
        \mathcal{L} = -\frac{1}{2n} \sum_{i=1}^{2n} \log
            \frac{e^{\cos(z_i, z_{i'}) / T}}{\sum_{j \neq i} e^{\cos(z_i, z_j) / T}}

    *z* are the rows of both views and :math:`i'` is the other view of row *i*. Every row is an
    anchor once and meets the other rows of its own view too, as in SimCLR and in GRACE and its
    successors on graphs. With ``negatives`` only the rows of ``anchor`` are anchors and meet their
    positive and ``negatives``, which is :func:`~common.losses.info_nce`. Embeddings are normalised
    here, in at least float32; the similarity is multiplied by 1 / temperature.

    Args:
        anchor: ``(n, d)`` embeddings of the first view, any scale.
        positive: ``(n, d)``; row *i* is the other view of row *i* of ``anchor``.
        negatives: ``(m, d)``, used instead of the other rows.
        temperature: *T*, positive; a scalar tensor receives its gradient.
        distributed: see below.
        block_entries: similarities that exist at once; any number gives the same loss.

    Returns:
        Scalar, float32 (float64 for float64 input); 0 for one row without ``negatives``.

    Raises:
        ArgumentError: a shape does not fit, or ``temperature`` is not positive.

    Distributed: rows are sharded over the ranks; the rows of all of them serve. ``negatives`` are
    used as they are, the same on every rank.

    Source:
        SimCLR, Chen et al., ICML 2020, equation 1 (arXiv 2002.05709).

    Example:
        >>> z = torch.eye(2)
        >>> nt_xent(z, z, temperature=1.0)  # ln(e + 2) - 1
        tensor(0.5514)
    """
    with torch.autocast(anchor.device.type, enabled=False):
        own, against, _ = contrast_pairs(
            anchor, positive, negatives, temperature, distributed, block_entries
        )
        return -F.logsigmoid(own - against(1.0)).mean()


class NTXent(PairwiseContrast):
    """:func:`nt_xent` with a fixed ``temperature``, ``distributed`` or not."""

    objective = staticmethod(nt_xent)
