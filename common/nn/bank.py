"""A memory of one feature for each sample of a data set."""

import torch
from torch import Tensor, nn

from common.distributed import gather_rows
from common.errors import ArgumentError, require, require_int
from common.losses._similarity import unit_rows


class MemoryBank(nn.Module):
    r"""One feature per sample, moved a little whenever the sample is seen.

    .. math:: v_i \leftarrow \frac{u}{\lVert u \rVert}, \qquad u = m \, v_i + (1 - m) \, \hat{f}_i

    The first feature of a sample is taken as it is. An index that comes more than once in an update
    moves once, by its last row. Saved with the module that holds it.

    Args:
        n: number of samples.
        d: width of the features.
        momentum: *m*, the weight of the old value; 0 overwrites.
        normalize: features and results are brought to unit length. False: both stay as they are.
        distributed: whether the updates of all ranks are applied.

    Attributes:
        features: ``(n, d)``; rows that were never updated are 0. The bank itself, not a copy: a
            loss that reads all of it needs its backward pass before the next update (or a clone),
            and ``bank.features[indices]`` is a copy anyway.
        seen: ``(n,)`` bool, which rows were updated.

    Distributed: with ``distributed=True`` every rank applies the updates of all ranks in the order
    of the ranks, so that all hold the same bank and the checkpoint of the first serves all.
    DistributedDataParallel broadcasts buffers at every forward pass; for a large bank tell it
    ``broadcast_buffers=False``.

    Source:
        Instance discrimination, Wu et al., CVPR 2018 (arXiv 1805.01978), and its reference code.

    Example:
        >>> bank = MemoryBank(3, 2, momentum=0.5)
        >>> bank.update(torch.tensor([2]), torch.tensor([[3.0, 0.0]]))
        >>> bank.update(torch.tensor([2]), torch.tensor([[0.0, 7.0]]))
        >>> bank.features
        tensor([[0.0000, 0.0000],
                [0.0000, 0.0000],
                [0.7071, 0.7071]])
        >>> bank.seen
        tensor([False, False,  True])
    """

    features: Tensor
    seen: Tensor

    def __init__(
        self,
        n: int,
        d: int,
        *,
        momentum: float = 0.5,
        normalize: bool = True,
        distributed: bool = False,
    ):
        super().__init__()
        n, d = require_int("n", n, 1), require_int("d", d, 1)
        require(0 <= momentum < 1, "momentum", momentum, "at least 0 and below 1")
        self.momentum = momentum
        self.normalize = normalize
        self.distributed = distributed
        self.register_buffer("features", torch.zeros(n, d))
        self.register_buffer("seen", torch.zeros(n, dtype=torch.bool))

    @torch.no_grad()
    def update(self, indices: Tensor, features: Tensor) -> None:
        """Moves the rows of ``(b,)`` indices towards ``(b, d)`` features."""
        n, d = self.features.shape
        expected = f"({len(indices)}, {d})"
        fits = features.shape == (len(indices), d)
        require(fits, "features", tuple(features.shape), expected)
        if self.distributed:
            (indices, _), (features, _) = gather_rows(indices), gather_rows(features.detach())
        if not len(indices):
            return
        lowest, highest = torch.stack(indices.aminmax()).tolist()
        if lowest < 0 or highest >= n:
            raise ArgumentError(f"indices must be from 0 to {n - 1}, got {lowest} to {highest}")

        rows, group = indices.unique(return_inverse=True)
        position = torch.arange(len(indices), device=indices.device)
        last = torch.zeros_like(rows).scatter_reduce_(0, group, position, "amax")
        new = features[last].to(self.features)
        new = unit_rows(new) if self.normalize else new
        moved = self.features[rows].lerp(new, 1 - self.momentum)
        moved = unit_rows(moved) if self.normalize else moved
        self.features[rows] = torch.where(self.seen[rows, None], moved, new)
        self.seen[rows] = True

    def extra_repr(self) -> str:
        n, d = self.features.shape
        return f"{n}, {d}, momentum={self.momentum}, normalize={self.normalize}"
