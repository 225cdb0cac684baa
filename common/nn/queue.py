"""A queue of the features of earlier steps."""

import torch
from torch import Tensor, nn

from common.distributed import gather_rows
from common.errors import require, require_int


class FeatureQueue(nn.Module):
    """The last ``size`` features, first in, first out, each with an integer label.

    Saved with the module that holds it. What is read comes in no particular order and carries no
    gradient; it is a snapshot, so that a queue may grow between a loss and its backward pass.

    Args:
        size: rows it holds; batches need not divide it, and of a larger one the last rows are kept.
        d: width of the features, which are stored as they come.
        distributed: whether the features of all ranks are enqueued.

    Attributes:
        features: ``(len(queue), d)``, only rows that were enqueued: none at the start.
        labels: ``(len(queue),)`` int64, a class, cluster or image number; -1 where none was given.
            May be written to, as clusters are found anew.
        is_full: whether ``size`` rows are there; SwAV uses its queue from then on.

    Distributed: with ``distributed=True`` every rank enqueues the rows of all ranks in the order of
    the ranks, so that all hold the same queue and the checkpoint of the first serves all. A sharded
    reader takes ``queue.features[rank()::world_size()]``. Without it, the queues differ, and
    DistributedDataParallel must be told ``broadcast_buffers=False`` or it makes them those of
    rank 0.

    Source:
        MoCo, He et al., CVPR 2020 (arXiv 1911.05722).

    Example:
        >>> queue = FeatureQueue(3, 1)
        >>> queue.enqueue(torch.tensor([[1.0], [2.0]]), labels=torch.tensor([7, 8]))
        >>> len(queue), queue.is_full
        (2, False)
        >>> queue.enqueue(torch.tensor([[3.0], [4.0]]))
        >>> queue.features.flatten(), queue.labels
        (tensor([4., 2., 3.]), tensor([-1,  8, -1]))
    """

    storage: Tensor
    label_storage: Tensor
    enqueued: Tensor

    def __init__(self, size: int, d: int, *, distributed: bool = False):
        super().__init__()
        self.size, self.d = require_int("size", size, 1), require_int("d", d, 1)
        self.distributed = distributed
        self.register_buffer("storage", torch.zeros(self.size, self.d))
        self.register_buffer("label_storage", torch.full((self.size,), -1))
        self.register_buffer("enqueued", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, features: Tensor, labels: Tensor | None = None) -> None:
        """Adds ``(n, d)`` features and their ``(n,)`` labels in place of the oldest."""
        fits = features.ndim == 2 and features.shape[1] == self.d
        require(fits, "features", tuple(features.shape), f"(n, {self.d})")
        if labels is None:
            labels = self.label_storage.new_full((len(features),), -1)
        require(
            labels.shape == features.shape[:1], "labels", tuple(labels.shape), f"({len(features)},)"
        )
        if self.distributed:
            (features, _), (labels, _) = gather_rows(features.detach()), gather_rows(labels)
        slots = self.enqueued + torch.arange(len(features), device=self.enqueued.device)
        self.enqueued += len(features)
        newest = slice(-self.size, None)
        slots = slots[newest] % self.size
        # Not in place: what was read before may be waiting for its backward pass.
        self.storage = self.storage.index_copy(0, slots, features[newest].to(self.storage))
        self.label_storage = self.label_storage.index_copy(
            0, slots, labels[newest].to(self.label_storage)
        )

    @property
    def features(self) -> Tensor:
        return self.storage[: len(self)]

    @property
    def labels(self) -> Tensor:
        return self.label_storage[: len(self)]

    @property
    def is_full(self) -> bool:
        return len(self) == self.size

    def __len__(self) -> int:
        return min(int(self.enqueued), self.size)

    def extra_repr(self) -> str:
        return f"{self.size}, {self.d}, distributed={self.distributed}"
