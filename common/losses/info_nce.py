"""InfoNCE: tell the positive of an anchor from the negatives."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.distributed import gather_rows
from common.errors import ArgumentError
from common.losses._pairs import check_columns, check_rows, check_temperature
from common.losses._similarity import unit_rows
from common.losses._streaming import streamed_logsumexp

LARGEST_LEARNED_SCALE = 100.0


def info_nce(
    anchor: Tensor,
    positive: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float | Tensor,
    in_batch: bool = False,
    distributed: bool = False,
    block_entries: int | None = None,
) -> Tensor:
    r"""Cross-entropy of each anchor's positive among its candidates, in O(n d) memory.

    .. math::
        \mathcal{L} = -\frac{1}{n p} \sum_{i, a} \log
            \frac{e^{s(x_i, y_{ia}) / T}}
            {\sum_b e^{s(x_i, y_{ib}) / T} + \sum_{c \in N_i} e^{s(x_i, c) / T}},
        \qquad s = \cos

    The negatives :math:`N_i` are the positives of all other rows, or ``negatives`` (a queue, mined
    hard ones), or with ``in_batch`` both. One direction only: average it with the roles swapped for
    CLIP's loss; for the other rows of both views see :func:`~common.losses.nt_xent`. Embeddings are
    normalised here, in at least float32; the similarity is multiplied by 1 / temperature.

    Args:
        anchor: *x*, ``(n, d)``, any scale.
        positive: *y*, ``(n, d)``, or ``(n, p, d)`` for *p* positives of each anchor.
        negatives: ``(m, d)``, shared by all anchors.
        temperature: *T*, positive; a scalar tensor receives its gradient.
        in_batch: the positives of the other rows serve beside the ``negatives`` given.
        distributed: see below.
        block_entries: similarities that exist at once; any number gives the same loss.

    Returns:
        Scalar, float32 (float64 for float64 input); 0 for one row without ``negatives``.

    Raises:
        ArgumentError: a shape does not fit, or ``temperature`` is not positive.

    Distributed: rows are sharded over the ranks; the positives of all of them serve. ``negatives``
    are used as they are, the same on every rank; gather them first if they are sharded as well.

    Source:
        CPC, van den Oord et al., arXiv 1807.03748; with a queue, MoCo, arXiv 1911.05722.

    Example:
        >>> x, y = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> info_nce(x, y, temperature=0.5)
        tensor(0.3301)
        >>> info_nce(x, y, negatives=torch.tensor([[0.0, 1.0]]), temperature=0.5)
        tensor(0.5776)
    """
    check_rows("anchor", anchor)
    n, d = anchor.shape
    if positive.ndim not in (2, 3) or (len(positive), positive.shape[-1]) != (n, d):
        raise ArgumentError(
            f"positive must be ({n}, {d}) or ({n}, p, {d}), got {tuple(positive.shape)}"
        )
    check_temperature(temperature)
    if negatives is not None:
        check_columns("negatives", negatives, anchor)
    elif in_batch:
        raise ArgumentError("in_batch must come with negatives; without, it is the only choice")
    with torch.autocast(anchor.device.type, enabled=False):
        rows = unit_rows(anchor) / temperature  # (n, d)
        positives = unit_rows(positive.reshape(-1, d))  # (n p, d)
        logits = torch.einsum("nd,npd->np", rows, positives.view(n, -1, d))
        if negatives is None or in_batch:
            p = logits.shape[1]
            columns, start = gather_rows(positives) if distributed else (positives, 0)
            negative = streamed_logsumexp(
                rows,
                columns,
                row_ids=start // p + torch.arange(n, device=rows.device),
                column_ids=torch.arange(len(columns), device=rows.device) // p,
                block_entries=block_entries,
            )  # (n,)
        if negatives is not None:
            given = streamed_logsumexp(rows, unit_rows(negatives), block_entries=block_entries)
            negative = torch.logaddexp(negative, given) if in_batch else given
        own = logits.logsumexp(dim=1)  # (n,)
        return (own - logits.mean(dim=1) - F.logsigmoid(own - negative)).mean()


class InfoNCE(nn.Module):
    """:func:`info_nce` at a fixed or learned temperature.

    Args:
        temperature: fixed, or where learning starts.
        learnable: learn the logarithm of 1 / temperature, which is kept at most 100 as in CLIP.
        in_batch: with explicit negatives, the positives of the other rows serve too.
        distributed: contrast with the rows of all ranks.
    """

    def __init__(
        self,
        temperature: float,
        learnable: bool = False,
        in_batch: bool = False,
        distributed: bool = False,
    ):
        super().__init__()
        check_temperature(temperature)
        log_scale = torch.tensor(-math.log(temperature))
        self.log_scale = nn.Parameter(log_scale) if learnable else None
        self.fixed = temperature
        self.in_batch = in_batch
        self.distributed = distributed

    @property
    def temperature(self) -> float | Tensor:
        if self.log_scale is None:
            return self.fixed
        return (-self.log_scale.clamp(max=math.log(LARGEST_LEARNED_SCALE))).exp()

    def forward(self, anchor: Tensor, positive: Tensor, negatives: Tensor | None = None) -> Tensor:
        return info_nce(
            anchor,
            positive,
            negatives,
            temperature=self.temperature,
            in_batch=self.in_batch and negatives is not None,
            distributed=self.distributed,
        )
