"""Supervised contrast: all rows of the same class are positives."""

import torch
from torch import Tensor, nn

from common.distributed import all_reduce, gather_rows, world_size
from common.errors import ArgumentError
from common.losses._pairs import (
    check_columns,
    check_labels,
    check_pairs,
    check_rows,
    check_temperature,
    logsumexp_of_others,
    stack_views,
)
from common.losses._similarity import unit_rows
from common.losses._streaming import streamed_logsumexp


def supervised_contrast(
    anchor: Tensor,
    positive: Tensor | None = None,
    queue: Tensor | None = None,
    *,
    labels: Tensor,
    queue_labels: Tensor | None = None,
    temperature: float | Tensor,
    distributed: bool = False,
    block_entries: int | None = None,
) -> Tensor:
    r"""Supervised contrast with the sum over positives outside the logarithm, in O(n d) memory.

    .. math::
        \mathcal{L} = -\frac{1}{|I|} \sum_{i \in I} \frac{1}{|P_i|} \sum_{p \in P_i} \log
            \frac{e^{\cos(z_i, z_p) / T}}{\sum_{j \neq i} e^{\cos(z_i, z_j) / T}}

    *z* are the rows of all views given, :math:`P_i` the others of the class of *i*, and *I* the
    rows that have one. With a ``queue`` the rows of ``anchor`` alone are anchors, and meet their
    own ``positive`` and the queue. All labels different gives :func:`~common.losses.nt_xent`.
    Embeddings are normalised here, in at least float32; the similarity is multiplied by
    1 / temperature.

    Args:
        anchor: ``(n, d)`` embeddings, any scale.
        positive: ``(n, d)`` second view of the same rows, if there is one.
        queue: ``(m, d)`` further rows.
        labels: ``(n,)`` integer class of each row of ``anchor``.
        queue_labels: ``(m,)``, those of ``queue``.
        temperature: *T*, positive; a scalar tensor receives its gradient.
        distributed: see below.
        block_entries: similarities that exist at once; any number gives the same loss.

    Returns:
        Scalar, float32 (float64 for float64 input); 0 if no row has a positive.

    Raises:
        ArgumentError: a shape does not fit, ``queue`` comes without its labels, or ``temperature``
            is not positive.

    Distributed: rows are sharded over the ranks; the rows of all of them serve. The mean is over
    the rows with a positive of all ranks, scaled so that the average over ranks is the loss of one
    process. A ``queue`` is used as it is, the same on every rank.

    Source:
        SupCon, Khosla et al., NeurIPS 2020, equation 2 (arXiv 2004.11362), without the factor
        :math:`T / T_\text{base}` of its code.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
        >>> supervised_contrast(z, labels=torch.tensor([0, 0, 1]), temperature=1.0)
        tensor(0.5470)
    """
    if positive is None:
        check_rows("anchor", anchor)
    else:
        check_pairs(anchor, positive)
    check_labels("labels", labels, len(anchor))
    check_temperature(temperature)
    if (queue is None) != (queue_labels is None):
        raise ArgumentError("queue and queue_labels must be given together, got one of them")
    with torch.autocast(anchor.device.type, enabled=False):
        views = [unit_rows(view) for view in (anchor, positive) if view is not None]
        if queue is not None and queue_labels is not None:
            check_columns("queue", queue, anchor)
            check_labels("queue_labels", queue_labels, len(queue))
            unit, others = views[0], unit_rows(queue)
            lse = streamed_logsumexp(unit / temperature, others, block_entries=block_entries)
            sums, counts = _class_sums(others, queue_labels, labels)
            if positive is not None:
                own = (unit * views[1]).sum(dim=1) / temperature
                lse, sums, counts = torch.logaddexp(lse, own), sums + views[1], counts + 1
        else:
            unit, columns, start = stack_views(views, distributed)  # (v n, d)
            column_ids = torch.arange(len(columns), device=unit.device)
            row_ids = column_ids.view(len(views), -1)[:, start : start + len(anchor)].flatten()
            lse = logsumexp_of_others(
                unit, columns, 1 / temperature, row_ids, column_ids, block_entries
            )
            column_labels = gather_rows(labels)[0] if distributed else labels
            sums, counts = _class_sums(
                columns, column_labels.repeat(len(views)), labels.repeat(len(views))
            )
            sums, counts = sums - unit, counts - 1  # a row is no positive of its own
        mean = (unit * sums).sum(dim=1) / (temperature * counts.clamp(min=1))
        loss = (lse - mean).where(counts > 0, 0).sum()
        total = (counts > 0).sum()
        if distributed:
            return loss * world_size() / all_reduce(total).clamp(min=1)
        return loss / total.clamp(min=1)


def _class_sums(x: Tensor, labels: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Of the rows of ``x`` with each label asked for, their sum ``(n, d)`` and number ``(n,)``."""
    ordered = torch.cat([labels, asked]).sort().values
    classes = torch.searchsorted(ordered, labels)  # the first place of the label numbers its class
    asked_classes = torch.searchsorted(ordered, asked)
    sums = x.new_zeros(len(ordered), x.shape[1]).index_add(0, classes, x)
    counts = x.new_zeros(len(ordered)).index_add(0, classes, x.new_ones(len(x)))
    return sums[asked_classes], counts[asked_classes]


class SupervisedContrast(nn.Module):
    """:func:`supervised_contrast` with fixed settings.

    Args:
        temperature: divides the similarity.
        distributed: contrast with the rows of all ranks.
    """

    def __init__(self, temperature: float, distributed: bool = False):
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature
        self.distributed = distributed

    def forward(
        self,
        anchor: Tensor,
        positive: Tensor | None = None,
        queue: Tensor | None = None,
        *,
        labels: Tensor,
        queue_labels: Tensor | None = None,
    ) -> Tensor:
        return supervised_contrast(
            anchor,
            positive,
            queue,
            labels=labels,
            queue_labels=queue_labels,
            temperature=self.temperature,
            distributed=self.distributed,
        )
