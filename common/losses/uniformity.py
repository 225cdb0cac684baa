"""Uniformity: all rows spread over the unit sphere."""

import math

import torch
from torch import Tensor

from common.distributed import gather_rows
from common.errors import require
from common.losses._pairs import check_negatives, check_rows, logsumexp_of_others
from common.losses._similarity import unit_rows


def uniformity(
    z: Tensor, *, t: float = 2.0, distributed: bool = False, block_entries: int | None = None
) -> Tensor:
    r"""Logarithm of the mean Gaussian potential of all pairs, in O(n d) memory.

    .. math::
        \mathcal{L} = \log \frac{1}{n (n - 1)} \sum_{i \neq j} e^{-t |\hat z_i - \hat z_j|^2}

    Embeddings are normalised here, in at least float32; a zero row counts as orthogonal to all
    others. For two views, average the values of both.

    Args:
        z: ``(n, d)`` embeddings, any scale, at least two rows.
        t: positive inverse width of the potential.
        distributed: see below.
        block_entries: pairs that exist at once; any number gives the same loss.

    Returns:
        Scalar, float32 (float64 for float64 input), between -4 t and 0, the value
        when all directions agree.

    Raises:
        ArgumentError: ``z`` is not a matrix of at least two rows, or ``t`` is not positive.

    Distributed: rows are sharded over the ranks and all pairs count. Every rank returns the value
    of the whole batch, whose gradient DistributedDataParallel averages to that of one process.

    Source:
        Wang and Isola, ICML 2020, equation 3 (arXiv 2005.10242).

    Example:
        >>> uniformity(torch.eye(2))  # -t times the squared distance
        tensor(-4.)
    """
    check_rows("z", z)
    require(0 < t < math.inf, "t", t, "positive and finite")
    with torch.autocast(z.device.type, enabled=False):
        unit = unit_rows(z)
        columns, start = gather_rows(unit) if distributed else (unit, 0)
        n = len(columns)
        check_negatives(n - 1, "z")
        ids = torch.arange(n, device=unit.device)
        own = ids[start : start + len(unit)]
        lse = logsumexp_of_others(unit, columns, 2 * t, own, ids, block_entries)  # (n,)
        if distributed:
            lse, _ = gather_rows(lse)
        return lse.logsumexp(dim=0) - 2 * t - math.log(n * (n - 1))
