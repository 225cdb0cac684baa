"""What the pairwise objectives share: checks of arguments, and the negatives of each anchor."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from common.distributed import gather_rows
from common.errors import ArgumentError, require
from common.losses._similarity import unit_rows
from common.losses._streaming import self_logsumexp, streamed_logsumexp


def contrast_pairs(
    anchor: Tensor,
    positive: Tensor,
    negatives: Tensor | None,
    temperature: float | Tensor,
    distributed: bool,
    block_entries: int | None,
) -> tuple[Tensor, Callable[[float], Tensor], int]:
    r"""The logits of the positives, and a function that sums up those of the negatives.

    Without ``negatives``, the rows of both views are anchors, and the negatives of each are all
    rows of both views but itself and its positive. With them, the rows of ``anchor`` alone are
    anchors, and ``negatives`` are all they meet.

    Returns:
        ``(a,)`` logits :math:`l^+` of the *a* anchors; from a factor *f* to
        :math:`\log \sum_j \exp(f l_{ij})` over the negatives of each anchor, ``(a,)``; and the
        number of those, the same for each.
    """
    check_pairs(anchor, positive, negatives)
    check_temperature(temperature)
    first, second = unit_rows(anchor), unit_rows(positive)
    positive_logits = (first * second).sum(dim=1) / temperature  # (n,)

    if negatives is not None:
        given = unit_rows(negatives)

        def against_given(factor: float) -> Tensor:
            rows = first * (factor / temperature)
            return streamed_logsumexp(rows, given, block_entries=block_entries)

        return positive_logits, against_given, len(negatives)

    unit, columns, start = stack_views([first, second], distributed)  # (2n, d)
    n = len(columns) // 2  # of all ranks
    row_ids = (start + torch.arange(len(first), device=unit.device)).repeat(2)
    column_ids = torch.arange(n, device=unit.device).repeat(2)

    def against_others(factor: float) -> Tensor:
        return logsumexp_of_others(
            unit, columns, factor / temperature, row_ids, column_ids, block_entries
        )

    return positive_logits.repeat(2), against_others, 2 * n - 2


class PairwiseContrast(nn.Module):
    """A two-view objective with fixed settings.

    Args:
        temperature: divides the similarity.
        distributed: contrast with the rows of all ranks.
        settings: what else ``objective`` takes.
    """

    objective: ClassVar[Callable[..., Tensor]]

    def __init__(self, temperature: float, distributed: bool = False, **settings: Any):
        super().__init__()
        check_temperature(temperature)
        self.settings = {"temperature": temperature, "distributed": distributed, **settings}

    def forward(self, anchor: Tensor, positive: Tensor, negatives: Tensor | None = None) -> Tensor:
        return type(self).objective(anchor, positive, negatives, **self.settings)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())


def stack_views(views: list[Tensor], distributed: bool) -> tuple[Tensor, Tensor, int]:
    """The rows of one view after the other: of this rank, then of all ranks if ``distributed``; and
    the index within a view of this rank's first."""
    unit = torch.cat(views)
    if not distributed:
        return unit, unit, 0
    gathered = [gather_rows(view) for view in views]
    return unit, torch.cat([rows for rows, _ in gathered]), gathered[0][1]


def logsumexp_of_others(
    unit: Tensor,
    columns: Tensor,
    scale: float | Tensor,
    row_ids: Tensor,
    column_ids: Tensor,
    block_entries: int | None,
) -> Tensor:
    """Of ``scale`` times the cosine of each row with the columns of another id, ``(n,)``; the rows
    are among the columns, and all of them where no other rank has any."""
    if len(unit) == len(columns):
        return self_logsumexp(unit, scale, column_ids, block_entries)
    return streamed_logsumexp(
        unit * scale, columns, row_ids=row_ids, column_ids=column_ids, block_entries=block_entries
    )


def check_pairs(anchor: Tensor, positive: Tensor, negatives: Tensor | None = None) -> None:
    check_rows("anchor", anchor)
    if positive.shape != anchor.shape or not positive.is_floating_point():
        raise ArgumentError(
            f"positive must be floats of the shape of anchor, {tuple(anchor.shape)}, "
            f"got {tuple(positive.shape)} of {positive.dtype}"
        )
    if negatives is not None:
        check_columns("negatives", negatives, anchor)


def check_rows(name: str, x: Tensor) -> None:
    if x.ndim != 2 or not x.is_floating_point() or len(x) == 0:
        raise ArgumentError(
            f"{name} must be (n, d) floats with n at least 1, got {tuple(x.shape)} of {x.dtype}"
        )


def check_columns(name: str, x: Tensor, rows: Tensor) -> None:
    check_rows(name, x)
    require(x.shape[1] == rows.shape[1], name, tuple(x.shape), f"(m, d) with d = {rows.shape[1]}")


def check_labels(name: str, labels: Tensor, n: int) -> None:
    if labels.shape != (n,) or labels.is_floating_point():
        raise ArgumentError(
            f"{name} must be ({n},) integers, got {tuple(labels.shape)} of {labels.dtype}"
        )


def check_temperature(temperature: float | Tensor) -> None:
    """A tensor's value is not looked at, which would wait for the device."""
    if isinstance(temperature, Tensor):
        require(temperature.ndim == 0, "temperature", tuple(temperature.shape), "a scalar")
    else:
        require(0 < temperature < math.inf, "temperature", temperature, "positive and finite")


def check_negatives(n_negatives: int, name: str = "anchor") -> None:
    if n_negatives == 0:
        raise ArgumentError(f"{name} must be at least 2 rows where no negatives are given, got 1")
