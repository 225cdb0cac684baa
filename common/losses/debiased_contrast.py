"""Debiased contrast: corrects for negatives that are positives unknown to the loss."""

from torch import Tensor

from common.losses._pairs import PairwiseContrast
from common.losses.hard_contrast import check_class_prior, hard_contrast


def debiased_contrast(
    anchor: Tensor,
    positive: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float | Tensor,
    class_prior: float = 0.1,
    distributed: bool = False,
    block_entries: int | None = None,
) -> Tensor:
    r"""NT-Xent whose negatives are corrected for those of the anchor's own class.

    .. math::
        \mathcal{L} = -\frac{1}{2n} \sum_{i=1}^{2n} \log
            \frac{e^{l_i^+}}{e^{l_i^+} + N g_i}, \qquad
        g_i = \max \Big( \frac{1}{1 - \tau^+} \Big(
            \frac{1}{N} \sum_{j=1}^{N} e^{l_{ij}} - \tau^+ e^{l_i^+} \Big),\ e^{-1/T} \Big)

    with the logits :math:`l = \cos / T` of the positive and of the *N* negatives, which are those
    of :func:`~common.losses.nt_xent`. It is :func:`~common.losses.hard_contrast` at
    concentration 0. Embeddings are normalised here, in at least float32; the similarity is
    multiplied by 1 / temperature.

    Args:
        anchor: ``(n, d)`` embeddings of the first view, any scale.
        positive: ``(n, d)``; row *i* is the other view of row *i* of ``anchor``.
        negatives: ``(m, d)``, used instead of the other rows.
        temperature: *T*, positive; a scalar tensor receives its gradient.
        class_prior: :math:`\tau^+`, the probability in [0, 1) that a negative is of the anchor's
            class; 0 gives NT-Xent.
        distributed: see below.
        block_entries: similarities that exist at once; any number gives the same loss.

    Returns:
        Scalar, float32 (float64 for float64 input).

    Raises:
        ArgumentError: a shape does not fit, ``temperature`` or ``class_prior`` is out of its range,
            or there is a single row and no ``negatives``.

    Distributed: rows are sharded over the ranks; the rows of all of them serve. ``negatives`` are
    used as they are, the same on every rank.

    Source:
        Chuang et al., NeurIPS 2020, equation 8 with one positive (arXiv 2007.00224).

    Example:
        >>> import torch
        >>> z = torch.eye(2)
        >>> debiased_contrast(z, z, temperature=1.0, class_prior=0.1)
        tensor(0.4671)
    """
    return hard_contrast(
        anchor,
        positive,
        negatives,
        temperature=temperature,
        concentration=0.0,
        class_prior=class_prior,
        distributed=distributed,
        block_entries=block_entries,
    )


class DebiasedContrast(PairwiseContrast):
    """:func:`debiased_contrast` with fixed settings.

    Args:
        temperature: divides the similarity.
        class_prior: probability that a negative is of the anchor's class.
        distributed: contrast with the rows of all ranks.
    """

    objective = staticmethod(debiased_contrast)

    def __init__(self, temperature: float, class_prior: float = 0.1, distributed: bool = False):
        check_class_prior(class_prior)
        super().__init__(temperature, distributed, class_prior=class_prior)
