"""Contrast whose negatives weigh the more the closer they are to the anchor."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import require
from common.losses._pairs import PairwiseContrast, check_negatives, contrast_pairs


def hard_contrast(
    anchor: Tensor,
    positive: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float | Tensor,
    concentration: float = 1.0,
    class_prior: float = 0.1,
    distributed: bool = False,
    block_entries: int | None = None,
) -> Tensor:
    r"""Debiased contrast with importance weights of hard negatives, in O(n d) memory.

    .. math::
        \mathcal{L} = -\frac{1}{2n} \sum_{i=1}^{2n} \log
            \frac{e^{l_i^+}}{e^{l_i^+} + N g_i}, \qquad
        g_i = \max \Big( \frac{1}{1 - \tau^+} \Big(
            \frac{\sum_j e^{(1 + \beta) l_{ij}}}{\sum_j e^{\beta l_{ij}}}
            - \tau^+ e^{l_i^+} \Big),\ e^{-1/T} \Big)

    with the logits :math:`l = \cos / T` of the positive and of the *N* negatives, which are those
    of :func:`~common.losses.nt_xent`. The gradient flows through the weights, and is 0 through
    :math:`g_i` where the bound holds. Embeddings are normalised here, in at least float32; the
    similarity is multiplied by 1 / temperature.

    Args:
        anchor: ``(n, d)`` embeddings of the first view, any scale.
        positive: ``(n, d)``; row *i* is the other view of row *i* of ``anchor``.
        negatives: ``(m, d)``, used instead of the other rows.
        temperature: *T*, positive; a scalar tensor receives its gradient.
        concentration: :math:`\beta \geq 0`, how much the hard ones weigh; 0 weighs all alike.
        class_prior: :math:`\tau^+`, the probability in [0, 1) that a negative is of the anchor's
            class.
        distributed: see below.
        block_entries: similarities that exist at once; any number gives the same loss.

    Returns:
        Scalar, float32 (float64 for float64 input).

    Raises:
        ArgumentError: a shape does not fit, ``temperature``, ``concentration`` or ``class_prior``
            is out of its range, or there is a single row and no ``negatives``.

    Distributed: rows are sharded over the ranks; the rows of all of them serve. ``negatives`` are
    used as they are, the same on every rank.

    Source:
        Robinson et al., ICLR 2021, equation 5 (arXiv 2010.04592); the weights as in its official
        code, where the concentration multiplies the logits.

    Example:
        >>> z = torch.eye(2)
        >>> others = torch.tensor([[1.0, 1.0], [0.0, -1.0]])
        >>> hard_contrast(z, z, others, temperature=1.0, concentration=1.0, class_prior=0.1)
        tensor(0.7851)
    """
    check_concentration(concentration)
    check_class_prior(class_prior)
    with torch.autocast(anchor.device.type, enabled=False):
        own, against, n_negatives = contrast_pairs(
            anchor, positive, negatives, temperature, distributed, block_entries
        )
        check_negatives(n_negatives)
        mean = against(1.0 + concentration) - (
            against(concentration) if concentration else math.log(n_negatives)
        )  # (a,), log of the weighted mean
        negative = _debiased(mean, own, class_prior)
        lowest = torch.as_tensor(-1 / temperature, dtype=negative.dtype, device=negative.device)
        negative = torch.maximum(negative, lowest) + math.log(n_negatives)
        return -F.logsigmoid(own - negative).mean()


def check_concentration(concentration: float) -> None:
    require(0 <= concentration < math.inf, "concentration", concentration, "at least 0 and finite")


def check_class_prior(class_prior: float) -> None:
    require(0 <= class_prior < 1, "class_prior", class_prior, "in [0, 1)")


def _debiased(mean: Tensor, own: Tensor, class_prior: float) -> Tensor:
    r""":math:`\log \frac{e^m - \tau^+ e^{l^+}}{1 - \tau^+}`, minus infinity where not positive."""
    if class_prior == 0:
        return mean
    share = own + math.log(class_prior) - mean  # log of the part that is taken away
    remains = share.detach().exp() < 1
    rest = torch.log1p(-share.where(remains, -1).exp())
    return (mean + rest - math.log1p(-class_prior)).where(remains | share.isnan(), -torch.inf)


class HardContrast(PairwiseContrast):
    """:func:`hard_contrast` with fixed settings.

    Args:
        temperature: divides the similarity.
        concentration: how much hard negatives weigh.
        class_prior: probability that a negative is of the anchor's class.
        distributed: contrast with the rows of all ranks.
    """

    objective = staticmethod(hard_contrast)

    def __init__(
        self,
        temperature: float,
        concentration: float = 1.0,
        class_prior: float = 0.1,
        distributed: bool = False,
    ):
        check_concentration(concentration)
        check_class_prior(class_prior)
        super().__init__(
            temperature, distributed, concentration=concentration, class_prior=class_prior
        )
