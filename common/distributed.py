"""Rows that are sharded over the ranks of a distributed job.

Everything here is the identity in a single process, so that callers need no special case. Each rank
holds its own rows, as many as it likes; together, in the order of the ranks, they are the whole.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from common.autograd import first_derivative_only


def world_size() -> int:
    """Number of ranks, 1 without a process group.

    Example:
        >>> world_size()
        1
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this rank, 0 without a process group.

    Example:
        >>> rank()
        0
    """
    return dist.get_rank() if world_size() > 1 else 0


def all_reduce(x: Tensor, op: str = "sum") -> Tensor:
    """``sum``, ``max`` or ``min`` of a tensor over the ranks, on every rank; carries no gradient.

    Example:
        >>> all_reduce(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    x = x.detach()
    if world_size() == 1:
        return x
    reduced = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(reduced, getattr(dist.ReduceOp, op.upper()))
    return reduced


def broadcast(x: Tensor, source: int = 0) -> Tensor:
    """The tensor of one rank, on every rank; carries no gradient.

    Example:
        >>> broadcast(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    x = x.detach()
    if world_size() == 1:
        return x
    sent = x.clone(memory_format=torch.contiguous_format)
    dist.broadcast(sent, source)
    return sent


def shard_sizes(n: int, device: torch.device | str = "cpu") -> list[int]:
    """Number of rows of each rank, of which this one has ``n``.

    Args:
        n: rows of this rank.
        device: where the backend communicates (a CUDA device for NCCL).

    Example:
        >>> shard_sizes(3)
        [3]
    """
    if world_size() == 1:
        return [n]
    sizes = torch.zeros(world_size(), dtype=torch.int64, device=device)
    sizes[rank()] = n
    return all_reduce(sizes).tolist()


def gather_rows(x: Tensor) -> tuple[Tensor, int]:
    """The rows ``(n_r, ...)`` of all ranks, in the order of the ranks, gradient included.

    In the backward pass every rank receives the sum over ranks of the gradients of its rows. A loss
    that is the mean over a rank's own rows then has, once DistributedDataParallel has averaged over
    ranks of equally many rows, the gradient of one process with the whole batch.

    Args:
        x: rows of this rank; their number may differ between ranks, the rest of the shape not.

    Returns:
        All rows ``(n, ...)``, and the index in them of this rank's first.

    Example:
        >>> gather_rows(torch.tensor([[1.0], [2.0]]))
        (tensor([[1.],
                [2.]]), 0)
    """
    if world_size() == 1:
        return x, 0
    sizes = shard_sizes(len(x), x.device)
    return _GatherRows.apply(x, sizes), sum(sizes[: rank()])


class _GatherRows(Function):
    @staticmethod
    def forward(ctx, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.own = slice(sum(sizes[: rank()]), sum(sizes[: rank() + 1]))
        padded = x.new_zeros(max(sizes), *x.shape[1:])  # collectives want equal shapes
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    @first_derivative_only("rows gathered over ranks")
    def backward(ctx, grad: Tensor):
        return all_reduce(grad)[ctx.own], None
