"""Deep embedded clustering: Student-t soft assignment, its sharpened target, and the loss."""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import ArgumentError


def student_t_log_assignment(z: Tensor, centroids: Tensor) -> Tensor:
    r"""Log of the soft assignment by a Student-t kernel with one degree of freedom.

    .. math::
        q_{ia} = \frac{(1 + |z_i - \mu_a|^2)^{-1}}{\sum_b (1 + |z_i - \mu_b|^2)^{-1}}

    Args:
        z: ``(n, d)`` embeddings, not normalised here.
        centroids: :math:`\mu`, ``(k, d)``.

    Returns:
        ``(n, k)`` log-probabilities, float32 (float64 for float64 input).

    Raises:
        ArgumentError: the two differ in *d*, or either is not a matrix.

    Source:
        DEC, Xie et al., ICML 2016, equation 1.

    Example:
        >>> z, centroids = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0], [2.0, 0.0]])
        >>> student_t_log_assignment(z, centroids).exp()
        tensor([[0.8333, 0.1667]])
    """
    if z.ndim != 2 or centroids.ndim != 2 or z.shape[1] != centroids.shape[1]:
        raise ArgumentError(
            "z and centroids must be (n, d) and (k, d), "
            f"got {tuple(z.shape)} and {tuple(centroids.shape)}"
        )
    with torch.autocast(z.device.type, enabled=False):
        dtype = torch.promote_types(z.dtype, torch.float32)
        z, centroids = z.to(dtype), centroids.to(dtype)
        # Distances of 1e15 and more would overflow when squared; a common unit cancels below.
        unit = (torch.maximum(_largest(z), _largest(centroids)) / 1e15).clamp(min=1)
        distance = torch.cdist(
            z / unit, centroids / unit, compute_mode="donot_use_mm_for_euclid_dist"
        )  # (n, k)
        return F.log_softmax(-(unit.square().reciprocal() + distance.square()).log(), dim=1)


def _largest(x: Tensor) -> Tensor:
    """The largest finite magnitude."""
    return x.detach().abs().nan_to_num(nan=0.0, posinf=0.0).amax()


def target_distribution(assignment: Tensor) -> Tensor:
    r"""Sharpened, size-balanced version of a soft assignment; carries no gradient.

    .. math:: p_{ia} \propto q_{ia}^2 / \textstyle\sum_i q_{ia}

    Args:
        assignment: *q*, ``(n, k)``, rows sum to 1. An all-zero column stays zero.

    Returns:
        ``(n, k)``, rows sum to 1.

    Source:
        DEC, Xie et al., ICML 2016, equation 3.

    Example:
        >>> target_distribution(torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]]))
        tensor([[0.9412, 0.0588],
                [0.6923, 0.3077],
                [0.0122, 0.9878]])
    """
    q = assignment.detach()
    size = q.sum(dim=0)
    sharpened = q.square() / size.where(size > 0, 1)
    return sharpened / sharpened.sum(dim=1, keepdim=True)


def self_training_loss(log_assignment: Tensor, target: Tensor | None = None) -> Tensor:
    r"""KL divergence from the target to the assignment, mean over samples.

    .. math:: \mathcal{L} = \frac{1}{n} \sum_{ia} p_{ia} \log \frac{p_{ia}}{q_{ia}}

    Args:
        log_assignment: :math:`\log q`, ``(n, k)``.
        target: *p*, ``(n, k)``; by default :func:`target_distribution` of the assignment itself.

    Returns:
        Scalar, 0 exactly when target and assignment agree.

    Distributed: no collective; the target balances the cluster sizes of the rows it is given.

    Source:
        DEC, Xie et al., ICML 2016, equation 2.

    Example:
        >>> self_training_loss(torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]]).log())
        tensor(0.0552)
    """
    if target is None:
        target = target_distribution(log_assignment.exp())
    with torch.autocast(log_assignment.device.type, enabled=False):
        return F.kl_div(log_assignment, target, reduction="batchmean")
