"""Fused kernels of :mod:`common.losses._streaming`: on CUDA, a block never leaves the chip.

Imported at the first use on CUDA. With ``TRITON_INTERPRET=1`` in the environment the same kernels
run on CPU tensors, which is how they are tested without a GPU.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


def logsumexp(
    rows: Tensor,
    columns: Tensor,
    bias: Tensor | None,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
) -> Tensor:
    """The log-sum-exp of each row, ``(n,)``."""
    rows, columns = rows.contiguous(), columns.contiguous()
    lse = rows.new_empty(len(rows))
    constants = _constants(rows, row_ids)
    _logsumexp_kernel[(triton.cdiv(len(rows), constants["SIDE"]),)](
        rows,
        columns,
        _or_zeros(bias, columns),
        *_ids(row_ids, column_ids, rows, columns),
        lse,
        len(rows),
        len(columns),
        **constants,
    )
    return lse


def gradients(
    rows: Tensor,
    columns: Tensor,
    bias: Tensor | None,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    lse: Tensor,
    grad: Tensor,
    needs: tuple[bool, ...],
) -> list[Tensor | None]:
    """Of rows, columns and bias, each where ``needs`` says so."""
    rows, columns = rows.contiguous(), columns.contiguous()
    row_ids_, column_ids_ = _ids(row_ids, column_ids, rows, columns)
    constants = _constants(rows, row_ids)
    # A pair weighs grad_i exp(x_i y_j + b_j - lse_i): of each side an offset and a factor.
    of_rows = (rows, -lse, grad.contiguous(), row_ids_)
    of_columns = (columns, _or_zeros(bias, columns), columns.new_ones(len(columns)), column_ids_)
    grad_rows = grad_columns = grad_bias = None
    if needs[0]:
        grad_rows, _ = _weighted_sums(of_rows, of_columns, constants)
    if needs[1] or needs[2]:
        grad_columns, grad_bias = _weighted_sums(of_columns, of_rows, constants)
    return [grad_rows, grad_columns if needs[1] else None, grad_bias if needs[2] else None]


def _weighted_sums(
    own: tuple[Tensor, ...], other: tuple[Tensor, ...], constants: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """The weighted sum of the other side's rows, ``(n, d)``, and of the weights, ``(n,)``."""
    n = len(own[0])
    sums, totals = torch.empty_like(own[0]), own[0].new_empty(n)
    _weighted_sums_kernel[(triton.cdiv(n, constants["SIDE"]),)](
        *own, *other, sums, totals, n, len(other[0]), **constants
    )
    return sums, totals


def _constants(rows: Tensor, ids: Tensor | None) -> dict[str, Any]:
    """Sizes whose shared memory, below 100 KiB, every device since 2020 has."""
    d = rows.shape[1]
    return {
        "d": d,
        "D": max(16, triton.next_power_of_2(d)),
        "SIDE": 64 if d <= 64 else 32,
        "HAS_IDS": ids is not None,
        "PRECISION": _precision(),
        "num_warps": 8 if d <= 64 else 4,
        "num_stages": 2 if d <= 128 else 1,
    }


def _precision() -> str:
    """That of float32, by three TensorFloat32 products where the device has them, unless PyTorch's
    own products may be less precise as well."""
    if torch.backends.cuda.matmul.allow_tf32:
        return "tf32"
    return "ieee" if torch.version.hip else "tf32x3"


def _or_zeros(bias: Tensor | None, columns: Tensor) -> Tensor:
    return columns.new_zeros(len(columns)) if bias is None else bias.contiguous()


def _ids(
    row_ids: Tensor | None, column_ids: Tensor | None, rows: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    if row_ids is None or column_ids is None:
        return rows, columns  # pointers that are not read
    return row_ids.contiguous(), column_ids.contiguous()


@triton.jit
def _load_rows(x, index, n, d: tl.constexpr, D: tl.constexpr):
    k = tl.arange(0, D)
    inside = (index[:, None] < n) & (k[None, :] < d)
    return tl.load(x + index[:, None].to(tl.int64) * d + k[None, :], mask=inside, other=0.0)


@triton.jit
def _logsumexp_kernel(
    rows,
    columns,
    bias,
    row_ids,
    column_ids,
    lse,
    n,
    m,
    d: tl.constexpr,
    D: tl.constexpr,
    SIDE: tl.constexpr,
    HAS_IDS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    x = _load_rows(rows, i, n, d, D)
    if HAS_IDS:
        own_ids = tl.load(row_ids + i, mask=i < n, other=0)
    top = tl.full((SIDE,), float("-inf"), tl.float32)
    total = tl.zeros((SIDE,), tl.float32)
    for start in range(0, m, SIDE):
        j = start + tl.arange(0, SIDE)
        y = _load_rows(columns, j, m, d, D)
        s = tl.dot(x, tl.trans(y), input_precision=PRECISION)
        s += tl.load(bias + j, mask=j < m, other=float("-inf"))[None, :]
        if HAS_IDS:
            ids = tl.load(column_ids + j, mask=j < m, other=0)
            s = tl.where(own_ids[:, None] == ids[None, :], float("-inf"), s)
        highest = tl.max(s, 1)
        higher = tl.maximum(top, highest, propagate_nan=tl.PropagateNan.ALL)
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(top - shift) + tl.sum(tl.exp(s - shift[:, None]), 1)
        top = higher
    tl.store(lse + i, top + tl.log(total), mask=i < n)


@triton.jit
def _weighted_sums_kernel(
    own,
    own_offset,
    own_factor,
    own_ids,
    other,
    other_offset,
    other_factor,
    other_ids,
    sums,
    totals,
    n,
    m,
    d: tl.constexpr,
    D: tl.constexpr,
    SIDE: tl.constexpr,
    HAS_IDS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    x = _load_rows(own, i, n, d, D)
    offset = tl.load(own_offset + i, mask=i < n, other=float("-inf"))
    factor = tl.load(own_factor + i, mask=i < n, other=0.0)
    if HAS_IDS:
        id_i = tl.load(own_ids + i, mask=i < n, other=0)
    total = tl.zeros((SIDE,), tl.float32)
    result = tl.zeros((SIDE, D), tl.float32)
    for start in range(0, m, SIDE):
        j = start + tl.arange(0, SIDE)
        y = _load_rows(other, j, m, d, D)
        s = tl.dot(x, tl.trans(y), input_precision=PRECISION) + offset[:, None]
        s += tl.load(other_offset + j, mask=j < m, other=float("-inf"))[None, :]
        weight = tl.exp(s) * factor[:, None]
        weight *= tl.load(other_factor + j, mask=j < m, other=0.0)[None, :]
        if HAS_IDS:
            id_j = tl.load(other_ids + j, mask=j < m, other=0)
            weight = tl.where(id_i[:, None] == id_j[None, :], 0.0, weight)
        total += tl.sum(weight, 1)
        result = tl.dot(weight, y, result, input_precision=PRECISION)
    k = tl.arange(0, D)
    inside = (i[:, None] < n) & (k[None, :] < d)
    tl.store(sums + i[:, None].to(tl.int64) * d + k[None, :], result, mask=inside)
    tl.store(totals + i, total, mask=i < n)
