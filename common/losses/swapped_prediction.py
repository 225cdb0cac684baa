"""Swapped prediction: the cluster code of one view is predicted from every other view."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import ArgumentError
from common.losses._pairs import check_temperature


def swapped_prediction(
    scores: Sequence[Tensor], codes: Sequence[Tensor], *, temperature: float = 0.1
) -> Tensor:
    r"""Cross-entropy between the code of a view and the scores of the other views.

    .. math::
        \mathcal{L} = -\frac{1}{A} \sum_{a=1}^{A} \frac{1}{V - 1} \sum_{v \neq a}
            \frac{1}{n} \sum_i q^a_i \cdot \log \operatorname{softmax}(s^v_i / T)

    The first *A* of the *V* views have codes (the large crops of multi-crop); for two views with
    codes this is the mean of both directions. Nothing is normalised here: scores are dot products
    of embeddings with prototypes, both of unit length in SwAV. The softmax multiplies them by
    1 / temperature. No gradient flows through the codes.

    Args:
        scores: of each view, ``(n, k)``.
        codes: *q* of the first views in the same order, ``(n, k)``, rows sum to 1.
        temperature: *T*, positive.

    Returns:
        Scalar, float32 (float64 for float64 input); :math:`\log k` when all scores are equal.

    Raises:
        ArgumentError: fewer than two views, no code or more codes than views, a shape that differs,
            or ``temperature`` is not positive.

    Distributed: nothing to exchange; each rank has the mean over its own rows. What couples the
    ranks is the computation of the codes.

    Source:
        SwAV, Caron et al., NeurIPS 2020, equations 1 and 2 (arXiv 2006.09882), averaged as in its
        code where the paper sums.

    Example:
        >>> scores = torch.tensor([[0.2, 0.1]]), torch.tensor([[0.1, 0.3]])
        >>> codes = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])
        >>> swapped_prediction(scores, codes, temperature=0.1)
        tensor(1.4701)
    """
    views, assigned = len(scores), len(codes)
    if views < 2 or not 1 <= assigned <= views:
        raise ArgumentError(
            "scores and codes must be at least 2 views and 1 to as many codes, "
            f"got {views} and {assigned}"
        )
    shape = scores[0].shape
    for name, tensors in (("scores", scores), ("codes", codes)):
        for x in tensors:
            if x.ndim != 2 or x.shape != shape or 0 in shape:
                raise ArgumentError(
                    f"{name} must all be (n, k) of one shape, got {tuple(x.shape)} "
                    f"beside {tuple(shape)}"
                )
    check_temperature(temperature)
    with torch.autocast(scores[0].device.type, enabled=False):
        dtype = torch.promote_types(scores[0].dtype, torch.float32)
        targets = [code.detach().to(dtype) for code in codes]
        total = torch.stack(targets).sum(dim=0)
        loss = scores[0].new_zeros((), dtype=dtype)
        for v, score in enumerate(scores):
            # Cross-entropy is linear in the code: one pass serves all codes of the other views.
            target = total - targets[v] if v < assigned else total
            loss = loss - (target * F.log_softmax(score.to(dtype) / temperature, dim=1)).sum()
        return loss / (assigned * (views - 1) * shape[0])
