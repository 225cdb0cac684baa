"""Unit rows, and sums of exponentiated cosine similarities over sparse pairs.

Throughout, :math:`e_{ij} = \\exp(\\tau s_{ij})`, :math:`s_{ij} = \\hat z_i \\cdot \\hat z_j` and
:math:`s_{ii} = 0`. Since :math:`|s| \\le 1`, no sum leaves the range of float32 while
:math:`|\\tau|` is at most ``LARGEST_INVERSE_TEMPERATURE``.
"""

import torch
from torch import Tensor
from torch.autograd import Function

from common.adjacency import csr_tensor
from common.autograd import first_derivative_only

LARGEST_INVERSE_TEMPERATURE = 60.0


def unit_rows(x: Tensor) -> Tensor:
    """Rows of ``(n, d)`` scaled to unit length, in at least float32; a zero row stays zero.

    Exact for any scale of normal numbers: the largest entry is divided out before squaring.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    largest = x.detach().abs().amax(dim=1, keepdim=True)
    is_zero = largest == 0
    scaled = (x / largest.masked_fill(is_zero, 1)).masked_fill(is_zero, 0)
    return scaled / scaled.square().sum(dim=1, keepdim=True).masked_fill(is_zero, 1).sqrt()


class WeightedExponentialSums(Function):
    r"""``(n, d)`` unit rows to :math:`\mathrm{pos}_i = \sum_j \Gamma_{ij} e_{ij}`, ``(n,)``.

    ``weights`` and its transpose are sparse CSR matrices; only stored entries are computed.
    """

    @staticmethod
    def forward(ctx, unit: Tensor, weights: Tensor, transposed: Tensor, tau: float) -> Tensor:
        ctx.save_for_backward(unit, weights, transposed)
        ctx.tau = tau
        terms = weights.values() * _sparse_exponentials(unit, weights, tau)
        return torch.segment_reduce(terms, "sum", offsets=weights.crow_indices(), initial=0)

    @staticmethod
    @first_derivative_only("sums of exponentials over the edges of a graph")
    def backward(ctx, grad: Tensor):
        # Row i gathers sum_j tau e_ij (Gamma_ij g_i + Gamma_ji g_j) z_j.
        unit, weights, transposed = ctx.saved_tensors
        tau = ctx.tau
        grad_unit = torch.zeros_like(unit)
        for matrix, own_row in ((weights, True), (transposed, False)):
            crow, col = matrix.crow_indices(), matrix.col_indices()
            row = torch.repeat_interleave(crow.diff())
            terms = matrix.values() * _sparse_exponentials(unit, matrix, tau)
            terms *= grad[row] if own_row else grad[col]
            terms[row == col] = 0
            grad_unit += csr_tensor(crow, col, terms, matrix.shape) @ unit
        return tau * grad_unit, None, None, None


def _sparse_exponentials(unit: Tensor, pattern: Tensor, tau: float) -> Tensor:
    """``e`` at the stored entries of ``pattern``, in their order."""
    crow, col = pattern.crow_indices(), pattern.col_indices()
    zeros = csr_tensor(crow, col, torch.zeros_like(pattern.values()), pattern.shape)
    similarity = torch.sparse.sampled_addmm(zeros, unit, unit.T, beta=0, alpha=tau).values()
    row = torch.repeat_interleave(crow.diff())
    return torch.where(row == col, 0, similarity).exp_()
