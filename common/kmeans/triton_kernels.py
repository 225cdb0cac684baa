"""Nearest centroids on CUDA without a matrix of distances.

Each program holds a block of rows and runs over the centroids block by block; of a block of
distances, which lives in registers, only the least of each row survives. The update that follows
adds the rows up in sorted order (``estimator._cluster_sums``): atomic additions inside the kernel
would save a pass over the rows, and give other bits in every run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_ROWS, BLOCK_CENTROIDS, BLOCK_WIDTH = 128, 64, 32


@triton.jit
def nearest_kernel(
    x_ptr,
    centroids_ptr,
    half_norms_ptr,
    labels_ptr,
    scores_ptr,
    n,
    k,
    d,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CENTROIDS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    restart = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    least = tl.full((BLOCK_ROWS,), float("inf"), tl.float32)
    label = tl.zeros((BLOCK_ROWS,), tl.int32)
    for begin in range(0, k, BLOCK_CENTROIDS):
        centroid = begin + tl.arange(0, BLOCK_CENTROIDS)
        product = tl.zeros((BLOCK_ROWS, BLOCK_CENTROIDS), tl.float32)
        for start in range(0, d, BLOCK_WIDTH):
            column = start + tl.arange(0, BLOCK_WIDTH)
            x = tl.load(
                x_ptr + row[:, None] * d + column[None, :],
                mask=(row[:, None] < n) & (column[None, :] < d),
                other=0.0,
            )
            c = tl.load(
                centroids_ptr + (restart * k + centroid[None, :]) * d + column[:, None],
                mask=(centroid[None, :] < k) & (column[:, None] < d),
                other=0.0,
            )
            product = tl.dot(x, c, product, input_precision="ieee")
        half_norm = tl.load(
            half_norms_ptr + restart * k + centroid, mask=centroid < k, other=float("inf")
        )
        score, where = tl.min(half_norm[None, :] - product, axis=1, return_indices=True)
        closer = score < least
        least = tl.where(closer, score, least)
        label = tl.where(closer, begin + where, label)
    tl.store(labels_ptr + restart * n + row, label, mask=row < n)
    tl.store(scores_ptr + restart * n + row, least, mask=row < n)


def nearest_scores(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    r"""Labels, and :math:`\lVert c \rVert^2 / 2 - \langle x, c \rangle` of the nearest centroid.

    Args:
        x: ``(n, d)`` float32.
        centroids: ``(r, k, d)`` float32, of as many restarts.

    Returns:
        ``(r, n)`` int64 and ``(r, n)`` float32.
    """
    x, centroids = x.contiguous(), centroids.contiguous()
    (restarts, k, d), n = centroids.shape, len(x)
    half_norms = centroids.square().sum(dim=2) / 2
    labels = torch.empty(restarts, n, dtype=torch.int32, device=x.device)
    scores = torch.empty(restarts, n, dtype=torch.float32, device=x.device)
    nearest_kernel[(triton.cdiv(n, BLOCK_ROWS), restarts)](
        x,
        centroids,
        half_norms,
        labels,
        scores,
        n,
        k,
        d,
        BLOCK_ROWS=BLOCK_ROWS,
        BLOCK_CENTROIDS=BLOCK_CENTROIDS,
        BLOCK_WIDTH=BLOCK_WIDTH,
    )
    return labels.long(), scores
