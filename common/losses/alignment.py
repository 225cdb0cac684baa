"""Alignment: the two views of a sample lie close together."""

import torch
from torch import Tensor

from common.errors import require
from common.losses._pairs import check_pairs
from common.losses._similarity import unit_rows


def alignment(anchor: Tensor, positive: Tensor, *, alpha: float = 2.0) -> Tensor:
    r"""Mean distance between the two views of a sample on the unit sphere.

    .. math:: \mathcal{L} = \frac{1}{n} \sum_i |\hat x_i - \hat y_i|^\alpha

    Embeddings are normalised here, in at least float32. Alone it is minimal where all rows are
    equal; :func:`~common.losses.uniformity` is its counterpart.

    Args:
        anchor: *x*, ``(n, d)``, any scale.
        positive: *y*, ``(n, d)``; row *i* is the other view of row *i* of ``anchor``.
        alpha: exponent of the distance, at least 1.

    Returns:
        Scalar, float32 (float64 for float64 input), 0 exactly when the directions agree.

    Raises:
        ArgumentError: the shapes differ, or ``alpha`` is below 1.

    Distributed: nothing to exchange; each rank has the mean over its own rows.

    Source:
        Wang and Isola, ICML 2020, equation 2 (arXiv 2005.10242).

    Example:
        >>> alignment(torch.eye(2), torch.tensor([[2.0, 0.0], [3.0, 0.0]]))
        tensor(1.)
    """
    check_pairs(anchor, positive)
    require(alpha >= 1, "alpha", alpha, "at least 1")
    with torch.autocast(anchor.device.type, enabled=False):
        square = (unit_rows(anchor) - unit_rows(positive)).square().sum(dim=1)  # (n,)
        if alpha == 2:
            return square.mean()
        apart = square != 0  # the distance has no derivative at 0
        return square.where(apart, 1).pow(alpha / 2).where(apart, 0).mean()
