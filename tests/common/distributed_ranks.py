"""What the ranks of the tests in ``test_distributed.py`` run."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from common.distributed import all_reduce, broadcast, gather_rows, rank, shard_sizes


def rows(n: int = 5) -> Tensor:
    return torch.arange(2.0 * n).view(n, 2)


def collectives() -> dict[str, Any]:
    """With rows 0 to 1 on the first rank and 2 to 4 on the second."""
    own = rows()[:2] if rank() == 0 else rows()[2:]
    own.requires_grad_()
    everything, first = gather_rows(own)
    (everything * (rank() + 1)).square().sum().backward()
    return {
        "sum": all_reduce(torch.tensor([rank() + 1.0])),
        "max": all_reduce(torch.tensor([float(rank())]), "max"),
        "broadcast": broadcast(torch.tensor([rank() + 7.0]), source=1),
        "sizes": shard_sizes(len(own)),
        "rows": everything.detach(),
        "first": first,
        "grad": own.grad,
    }


def pairwise_loss(own: Tensor, everything: Tensor) -> Tensor:
    return (own @ everything.T).logsumexp(dim=1).mean()


def parameter_gradient() -> Tensor:
    """Of a loss that couples all rows, under DistributedDataParallel with half the rows a rank."""
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(2, 3).double())
    own = model(rows(6).double()[3 * rank() : 3 * rank() + 3] / 10)
    everything, _ = gather_rows(own)
    pairwise_loss(own, everything).backward()
    return model.module.weight.grad


def everything_on_each() -> dict[str, Any]:
    return {**collectives(), "parameter_gradient": parameter_gradient()}
