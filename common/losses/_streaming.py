"""Log-sum-exp of similarities without the matrix of similarities, gradient included.

Memory is O((n + m) d) and one block: the forward pass keeps one number a row, the backward pass
recomputes the similarities block by block. Float32 on CUDA goes through a fused Triton kernel.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from math import isqrt

import torch
from torch import Tensor
from torch.autograd import Function

from common.autograd import first_derivative_only
from common.errors import ArgumentError, require, require_int
from common.losses._similarity import LARGEST_INVERSE_TEMPERATURE

# Entries of one square block. On a CPU, 1 MiB in float32 stays in a core's cache, which makes the
# blocked form faster than the dense one as well as smaller; a GPU needs more to be busy.
BLOCK_ENTRIES = {"cpu": 1 << 18, "other": 1 << 24}

REFUSAL = (
    "a streamed contrastive loss, whose backward pass recomputes similarities without a graph; "
    "write the loss in its dense form to differentiate it twice"
)

LARGEST_FUSED_DIM = 256  # a kernel keeps the gradient of its rows in registers


def streamed_logsumexp(
    rows: Tensor,
    columns: Tensor,
    *,
    bias: Tensor | None = None,
    row_ids: Tensor | None = None,
    column_ids: Tensor | None = None,
    block_entries: int | None = None,
) -> Tensor:
    r"""Log-sum-exp over columns of dot products, in linear memory; what the objectives build on.

    .. math::
        \mathrm{lse}_i = \log \sum_{j:\, r_i \neq c_j} \exp(x_i \cdot y_j + b_j)

    Nothing is normalised here: pass ``unit rows / temperature`` for the cosine at a temperature,
    which may be a tensor and gets its gradient through the rows. The gradient reaches rows, columns
    and bias; second derivatives are refused.

    Args:
        rows: *x*, ``(n, d)``, in float32 or float64.
        columns: *y*, ``(m, d)``.
        bias: *b*, ``(m,)``, added to the similarities of a column: the logarithm of its weight.
        row_ids: *r*, ``(n,)`` int64. A pair of equal ids is left out: a row and itself, its
            positive, or all rows of the same class.
        column_ids: *c*, ``(m,)`` int64; both ids or neither.
        block_entries: similarities that exist at once; any number gives the same result. By
            default one that suits the device.

    Returns:
        ``(n,)``, minus infinity for a row without columns, which has gradient 0.

    Raises:
        ArgumentError: a shape does not fit.

    Distributed: no collective; pass columns from :func:`common.distributed.gather_rows`.

    Source:
        The running maximum is that of Milakov and Gimelshein, arXiv 1805.02867.

    Example:
        >>> x, y = torch.eye(2), torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
        >>> streamed_logsumexp(x, y)
        tensor([2.4076, 3.0949])
        >>> own = torch.tensor([0, 1])
        >>> streamed_logsumexp(x, y, row_ids=own, column_ids=torch.tensor([0, 0, 1]))
        tensor([0.0000, 0.6931])
    """
    if rows.ndim != 2 or columns.ndim != 2 or rows.shape[1] != columns.shape[1]:
        raise ArgumentError(
            "rows and columns must be (n, d) and (m, d), "
            f"got {tuple(rows.shape)} and {tuple(columns.shape)}"
        )
    if rows.dtype != columns.dtype or rows.dtype not in (torch.float32, torch.float64):
        raise ArgumentError(
            "rows and columns must both be float32 or float64, "
            f"got {rows.dtype} and {columns.dtype}"
        )
    if (row_ids is None) != (column_ids is None):
        raise ArgumentError("row_ids and column_ids must be given together, got one of them")
    for name, vector, size in (
        ("bias", bias, len(columns)),
        ("row_ids", row_ids, len(rows)),
        ("column_ids", column_ids, len(columns)),
    ):
        if vector is not None:
            require(vector.shape == (size,), name, tuple(vector.shape), f"({size},)")
    with torch.autocast(rows.device.type, enabled=False):
        side = _side(rows, block_entries)
        return _CrossLogSumExp.apply(rows, columns, bias, row_ids, column_ids, side)


def self_logsumexp(
    unit: Tensor, scale: float | Tensor, ids: Tensor, block_entries: int | None = None
) -> Tensor:
    r""":math:`\log \sum_{j:\, c_i \neq c_j} e^{f x_i \cdot x_j}`, ``(n,)``; *f* is the scale.

    On a CPU at the usual temperatures each block serves both triangles of the symmetric matrix, and
    no running maximum is needed: half the work of :func:`streamed_logsumexp`.
    """
    symmetric = (
        unit.device.type != "cuda"
        and not isinstance(scale, Tensor)
        and abs(scale) <= LARGEST_INVERSE_TEMPERATURE
    )
    with torch.autocast(unit.device.type, enabled=False):
        if symmetric:
            return _SelfLogSumExp.apply(unit, float(scale), ids, _side(unit, block_entries))
        return streamed_logsumexp(
            unit * scale, unit, row_ids=ids, column_ids=ids, block_entries=block_entries
        )


def _fused(rows: Tensor, columns: Tensor) -> bool:
    """Whether the Triton kernels compute this."""
    return (
        rows.is_cuda
        and rows.dtype == torch.float32
        and 0 < rows.shape[1] <= LARGEST_FUSED_DIM
        and min(len(rows), len(columns)) > 0
        and find_spec("triton") is not None
    )


def _side(rows: Tensor, block_entries: int | None) -> int:
    if block_entries is None:
        block_entries = BLOCK_ENTRIES["cpu" if rows.device.type == "cpu" else "other"]
    return isqrt(require_int("block_entries", block_entries, 1))


class _CrossLogSumExp(Function):
    @staticmethod
    def forward(ctx, rows, columns, bias, row_ids, column_ids, side: int) -> Tensor:
        if _fused(rows, columns):
            from common.losses import _triton

            with torch.cuda.device_of(rows):
                lse = _triton.logsumexp(rows, columns, bias, row_ids, column_ids)
        else:
            lse = _logsumexp(rows, columns, bias, row_ids, column_ids, side)
        ctx.save_for_backward(rows, columns, bias, row_ids, column_ids, lse)
        ctx.side = side
        return lse

    @staticmethod
    @first_derivative_only(REFUSAL)
    def backward(ctx, grad: Tensor):
        rows, columns, bias, row_ids, column_ids, lse = ctx.saved_tensors
        lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # a row without columns weighs nothing
        needs = ctx.needs_input_grad[:3]
        if _fused(rows, columns):
            from common.losses import _triton

            with torch.cuda.device_of(rows):
                gradients = _triton.gradients(
                    rows, columns, bias, row_ids, column_ids, lse, grad, needs
                )
        else:
            gradients = _gradients(
                rows, columns, bias, row_ids, column_ids, lse, grad, needs, ctx.side
            )
        return *gradients, None, None, None


class _SelfLogSumExp(Function):
    """Exponentials of at most ``exp(LARGEST_INVERSE_TEMPERATURE)``, whose sums float32 can hold."""

    @staticmethod
    def forward(ctx, unit: Tensor, scale: float, ids: Tensor, side: int) -> Tensor:
        blocks = _Blocks(unit, unit, ids, ids, side, scale)
        sums = unit.new_zeros(len(unit))
        for own, other in _upper_triangle(len(unit), side):
            block = blocks.exponentials(own, other)
            sums[own] += block.sum(dim=1)
            if own != other:
                sums[other] += block.sum(dim=0)
        ctx.save_for_backward(unit, ids, sums)
        ctx.scale, ctx.side = scale, side
        return sums.log()

    @staticmethod
    @first_derivative_only(REFUSAL)
    def backward(ctx, grad: Tensor):
        # d lse_i / d x_j = scale p_ij x_i with p_ij = e_ij / sum_i, and e is symmetric: row i
        # receives scale sum_j e_ij (g_i / sum_i + g_j / sum_j) x_j.
        unit, ids, sums = ctx.saved_tensors
        share = ctx.scale * grad / sums.masked_fill(sums == 0, torch.inf)
        blocks = _Blocks(unit, unit, ids, ids, ctx.side, ctx.scale)
        factor = torch.empty_like(blocks.memory)
        grad_unit = torch.zeros_like(unit)
        for own, other in _upper_triangle(len(unit), ctx.side):
            block = blocks.exponentials(own, other)
            weight = factor[: block.numel()].view(block.shape)
            block *= torch.add(share[own, None], share[other], out=weight)
            grad_unit[own].addmm_(block, unit[other])
            if own != other:
                grad_unit[other].addmm_(block.T, unit[own])
        return grad_unit, None, None, None


def _logsumexp(rows, columns, bias, row_ids, column_ids, side: int) -> Tensor:
    blocks = _Blocks(rows, columns, row_ids, column_ids, side)
    lse = rows.new_empty(len(rows))
    for own in _slices(len(rows), side):
        top = rows.new_full((own.stop - own.start,), -torch.inf)
        total = torch.zeros_like(top)
        for other in _slices(len(columns), side):
            block = blocks.similarity(own, other)
            if bias is not None:
                block += bias[other]
            blocks.leave_out(block, own, other, -torch.inf)
            higher = torch.maximum(top, block.amax(dim=1))
            shift = higher.masked_fill(higher == -torch.inf, 0)  # no column so far
            total *= (top - shift).exp_()
            total += block.sub_(shift[:, None]).exp_().sum(dim=1)
            top = higher
        lse[own] = top + total.log_()
    return lse


def _gradients(
    rows, columns, bias, row_ids, column_ids, lse, grad, needs: tuple[bool, ...], side: int
) -> list[Tensor | None]:
    """Of rows, columns and bias, each where ``needs`` says so."""
    blocks = _Blocks(rows, columns, row_ids, column_ids, side)
    grad_rows, grad_columns, grad_bias = (
        torch.zeros_like(x) if needed else None
        for x, needed in zip((rows, columns, bias), needs, strict=True)
    )
    for own in _slices(len(rows), side):
        for other in _slices(len(columns), side):
            weight = blocks.similarity(own, other)  # to become grad_i exp(x_i y_j + b_j - lse_i)
            if bias is not None:
                weight += bias[other]
            blocks.leave_out(weight, own, other, -torch.inf)
            weight.sub_(lse[own, None]).exp_().mul_(grad[own, None])
            if grad_rows is not None:
                grad_rows[own].addmm_(weight, columns[other])
            if grad_columns is not None:
                grad_columns[other].addmm_(weight.T, rows[own])
            if grad_bias is not None:
                grad_bias[other] += weight.sum(dim=0)
    return [grad_rows, grad_columns, grad_bias]


class _Blocks:
    """Blocks of the similarities of rows and columns, one at a time in the same memory."""

    def __init__(self, rows, columns, row_ids, column_ids, side: int, scale: float = 1.0):
        self.rows, self.columns, self.scale = rows, columns, scale
        self.row_ids, self.column_ids = row_ids, column_ids
        self.memory = rows.new_empty(min(side, len(rows)) * min(side, len(columns)))

    def similarity(self, own: slice, other: slice) -> Tensor:
        rows, columns = self.rows[own], self.columns[other]
        block = self.memory[: len(rows) * len(columns)].view(len(rows), len(columns))
        return torch.addmm(block, rows, columns.T, beta=0, alpha=self.scale, out=block)

    def exponentials(self, own: slice, other: slice) -> Tensor:
        block = self.similarity(own, other).exp_()
        self.leave_out(block, own, other, 0)
        return block

    def leave_out(self, block: Tensor, own: slice, other: slice, value: float) -> None:
        """Sets the pairs of equal ids to ``value``."""
        if self.row_ids is None:
            return
        row_ids, column_ids = self.row_ids[own], self.column_ids[other]
        if block.device.type != "cpu" or _may_meet(row_ids, column_ids):
            block.masked_fill_(row_ids[:, None] == column_ids, value)


def _may_meet(first: Tensor, second: Tensor) -> bool:
    """Whether the ranges of two sets of ids overlap: seldom, where ids are positions."""
    (low, high), (other_low, other_high) = first.aminmax(), second.aminmax()
    return bool((low <= other_high) & (other_low <= high))


def _slices(n: int, side: int) -> Iterator[slice]:
    return (slice(start, min(n, start + side)) for start in range(0, n, side))


def _upper_triangle(n: int, side: int) -> Iterator[tuple[slice, slice]]:
    for own in _slices(n, side):
        for other in _slices(n - own.start, side):
            yield own, slice(own.start + other.start, own.start + other.stop)
