r"""Whitening: features that are uncorrelated and of unit variance over the batch.

.. math:: Y = X_c \, \Sigma^{-1/2}, \qquad \Sigma = \tfrac{1}{n} X_c^\top X_c

with the symmetric root (ZCA), which of all whitening maps moves the rows least.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function

from common.autograd import first_derivative_only
from common.distributed import all_reduce, broadcast, gather_rows
from common.errors import ArgumentError, require, require_int

Method = Literal["eigen", "newton"]


def group_whiten(
    x: Tensor,
    n_groups: int = 1,
    *,
    permutation: Tensor | None = None,
    method: Method = "eigen",
    iterations: int = 20,
    epsilon: float = 0.0,
    whitening_grad: bool = True,
    distributed: bool = False,
) -> Tensor:
    r"""ZCA whitening over the batch, within groups of features.

    The features are permuted, cut into ``n_groups`` groups of consecutive ones, each group is
    whitened for itself, and the features are put back in place. One group is ZCA whitening of all
    features; groups of one feature are standardisation. The result does not depend on the mean of
    the rows or on their scale, and no scale of finite input overflows.

    Args:
        x: ``(n, d)``.
        n_groups: divides *d*. With *n* rows a group of *n* or more features has no full rank.
        permutation: ``(d,)``, the order of the features before they are cut; default as they come.
        method: what finds the root, see :func:`inverse_square_root`.
        iterations: of ``"newton"``.
        epsilon: adds ``epsilon`` times their mean to the eigenvalues of :math:`\Sigma`. With 0,
            ``"eigen"`` sets directions without variance to 0 in the result.
        whitening_grad: False takes :math:`\Sigma^{-1/2}` as a constant, as WhitenedCSE does; the
            gradient then passes through the centred rows alone.
        distributed: whether the batch is that of all ranks.

    Returns:
        ``(n, d)``, float32 (float64 for float64 input), :math:`Y^\top Y / n = I` in each group of
        full rank. The gradient is finite, also where eigenvalues coincide or vanish.

    Distributed: with ``distributed=True`` mean and covariance are those of the rows of all ranks,
    gradient included; the result is this rank's rows. Moments are communicated, not rows.

    Raises:
        ArgumentError: an argument out of its range, or values that are not finite.

    Source:
        WhitenedCSE, Zhuo et al., ACL 2023 (arXiv 2305.17746); Huang et al., Decorrelated batch
        normalization, CVPR 2018 (arXiv 1804.08450).

    Example:
        >>> x = torch.tensor([[0.0, 5.0], [2.0, 5.0], [0.0, 9.0], [2.0, 9.0]])
        >>> group_whiten(x)
        tensor([[-1., -1.],
                [ 1., -1.],
                [-1.,  1.],
                [ 1.,  1.]])
    """
    if x.ndim != 2 or not x.numel() or not x.is_floating_point():
        raise ArgumentError(f"x must be (n, d) floating-point rows, got {x.dtype} {tuple(x.shape)}")
    if not x.isfinite().all():
        raise ArgumentError("x must be finite, got NaN or infinity")
    n_groups = require_int("n_groups", n_groups, 1)
    require(x.shape[1] % n_groups == 0, "n_groups", n_groups, f"a divisor of d = {x.shape[1]}")
    require(epsilon >= 0, "epsilon", epsilon, "at least 0")
    every = torch.arange(x.shape[1], device=x.device)
    order = every if permutation is None else permutation.to(x.device)
    if not order.sort().values.equal(every):
        raise ArgumentError(f"permutation must hold each of 0 to {x.shape[1] - 1} once")

    with torch.autocast(x.device.type, enabled=False):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        groups = x[:, order].unflatten(1, (n_groups, -1)).transpose(0, 1)  # (g, n, c)
        largest = groups.detach().abs().amax(dim=(1, 2), keepdim=True)  # cancels in the result
        n = x.new_tensor(len(x))
        if distributed:
            largest, n = all_reduce(largest, "max"), all_reduce(n)
        groups = groups / largest.clamp_min(torch.finfo(x.dtype).tiny)
        centred = groups - _total(groups.sum(dim=1, keepdim=True), distributed) / n
        covariance = _total(centred.mT @ centred, distributed) / n  # (g, c, c)
        variance = covariance.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
        covariance = covariance + epsilon * variance * torch.eye(groups.shape[2]).to(x)
        if not whitening_grad:
            covariance = covariance.detach()
        white = centred @ inverse_square_root(covariance, method=method, iterations=iterations)
        return white.transpose(0, 1).flatten(1)[:, order.argsort()]


def shuffled_group_whiten(
    x: Tensor, n_groups: int, *, generator: torch.Generator | None = None, **options: Any
) -> Tensor:
    """:func:`group_whiten` with groups of features drawn at random, anew in every call.

    Args:
        x: ``(n, d)``.
        n_groups: divides *d*.
        generator: of the permutation, on the CPU; default torch's global one.
        options: of :func:`group_whiten`. With ``distributed=True`` all ranks take the permutation
            of rank 0.

    Source:
        WhitenedCSE, Zhuo et al., ACL 2023 (arXiv 2305.17746).

    Example:
        >>> x = torch.randn(64, 12)
        >>> y = shuffled_group_whiten(x, n_groups=4)
        >>> torch.allclose(y.std(dim=0, correction=0), torch.ones(12))
        True
    """
    permutation = torch.randperm(x.shape[-1], generator=generator).to(x.device)
    if options.get("distributed"):
        permutation = broadcast(permutation)
    return group_whiten(x, n_groups, permutation=permutation, **options)


def inverse_square_root(
    matrix: Tensor, *, method: Method = "eigen", iterations: int = 20
) -> Tensor:
    r"""The symmetric inverse square root of positive semi-definite matrices.

    Args:
        matrix: ``(..., c, c)``, symmetric.
        method: ``"eigen"``: by eigendecomposition. Eigenvalues that are zero up to rounding, at
            most *c* times the machine epsilon times the largest, give 0 (the pseudo-inverse). The
            gradient is the Daleckii-Krein formula with divided differences in closed form, so that
            coinciding eigenvalues need no care; that of vanished ones is for a rank that stays.
            There is no second derivative.
            ``"newton"``: by the coupled Newton-Schulz iteration, matrix products only, which are
            fast on a GPU and differentiated as they are. An eigenvalue :math:`\lambda` takes about
            :math:`2.5 \log(\lVert M \rVert_F / \lambda) / 2` rounds and a few more; smaller ones
            are underestimated; vanished ones give
            :math:`1.5^{\mathrm{iterations}} / \lVert M \rVert_F^{1/2}`.
        iterations: of ``"newton"``.

    Returns:
        ``(..., c, c)``, in the precision of ``matrix``.

    Source:
        Huang et al., Iterative normalization, CVPR 2019 (arXiv 1904.03441) for whitening by
        Newton's iteration; its coupled, stable form: Higham, Functions of matrices, 2008, eq. 6.35.

    Example:
        >>> inverse_square_root(torch.tensor([[4.0, 0.0], [0.0, 0.25]]))
        tensor([[0.5000, 0.0000],
                [0.0000, 2.0000]])
    """
    require(method in ("eigen", "newton"), "method", method, "eigen or newton")
    if method == "eigen":
        return _InverseSquareRoot.apply(matrix)
    identity = torch.eye(matrix.shape[-1]).to(matrix)
    norm = torch.linalg.matrix_norm(matrix)[..., None, None]
    norm = norm.where(norm > 0, 1)
    root, inverse = matrix / norm, identity
    for _ in range(require_int("iterations", iterations, 1)):
        step = (3 * identity - inverse @ root) / 2
        root, inverse = root @ step, step @ inverse
    return inverse / norm.sqrt()


class _InverseSquareRoot(Function):
    @staticmethod
    def forward(ctx, matrix: Tensor) -> Tensor:
        eigenvalues, vectors = torch.linalg.eigh(matrix)
        rounding = matrix.shape[-1] * torch.finfo(matrix.dtype).eps
        kept = eigenvalues > rounding * eigenvalues[..., -1:].clamp_min(0)
        root = eigenvalues.where(kept, 1).sqrt()
        ctx.save_for_backward(vectors, root, kept)
        return (vectors * (kept / root)[..., None, :]) @ vectors.mT

    @staticmethod
    @first_derivative_only("whitening by method 'eigen'; method 'newton' has one")
    def backward(ctx, grad: Tensor):
        # With a = sqrt(eigenvalue), (1/a - 1/b) / (a^2 - b^2) = -1 / (a b (a + b)); where one of
        # the two has vanished, and gives 0 instead of 1/b, the quotient is 1 / a^3.
        vectors, root, kept = ctx.saved_tensors
        a, b = root[..., :, None], root[..., None, :]
        keep_a, keep_b = kept[..., :, None], kept[..., None, :]
        quotient = torch.where(keep_a & keep_b, -1 / (a * b * (a + b)), (a * b) ** -3)
        quotient = quotient * (keep_a | keep_b)
        inner = vectors.mT @ ((grad + grad.mT) / 2) @ vectors
        return vectors @ (quotient * inner) @ vectors.mT


def _total(x: Tensor, distributed: bool) -> Tensor:
    """Sum over the ranks, gradient included."""
    return gather_rows(x[None])[0].sum(dim=0) if distributed else x
