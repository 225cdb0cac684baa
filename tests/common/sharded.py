"""What the ranks of the tests in ``test_sharded.py`` run: each with its share of the rows."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.distributed import rank, world_size
from common.nn import FeatureQueue, MemoryBank, MomentumEncoder, Prototypes, mlp
from common.whitening import group_whiten, shuffled_group_whiten

N, D = 24, 6


def data() -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def own(x: Tensor, shares: tuple[int, int]) -> Tensor:
    """The share of this rank, or everything in a single process."""
    return x if world_size() == 1 else x.split(shares)[rank()]


def memories() -> dict[str, Tensor]:
    queue = FeatureQueue(7, D, distributed=True)
    bank = MemoryBank(9, D, momentum=0.3, distributed=True)
    indices = torch.arange(N) * 5 % 11 % 9
    for rows, ids in zip(data().split(10), indices.split(10), strict=True):
        shares = (3, len(rows) - 3)
        queue.enqueue(own(rows, shares), labels=own(ids, shares))
        bank.update(own(ids, shares), own(rows, shares))
    return {
        "queue": queue.features,
        "labels": queue.labels,
        "bank": bank.features,
        "seen": bank.seen,
    }


def one_training_step() -> dict[str, Tensor]:
    """Two steps of a student of prototypes with a momentum teacher, half the rows a rank."""
    torch.manual_seed(0)
    student = nn.Sequential(mlp(D, 8, 4), Prototypes(4, 5, frozen_until=1)).double()
    teacher = MomentumEncoder(student)
    wrapped = DistributedDataParallel(student) if world_size() > 1 else student
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5, weight_decay=0.1)
    rows = own(data(), (N // 2, N // 2))
    for step in range(2):
        student[1].normalize_()
        loss = (wrapped(rows) - teacher(rows)).square().mean() + wrapped(rows).exp().mean()
        optimizer.zero_grad()
        loss.backward()
        student[1].drop_gradient(step)
        optimizer.step()
        teacher.update(student, momentum=0.9)
    return dict(teacher.encoder.state_dict())


def whitening() -> dict[str, Tensor]:
    """Rows and gradients of a loss over the rows of all ranks, whose shares differ."""
    results = {}
    for method in ("eigen", "newton"):
        x = own(data(), (9, N - 9)).clone().requires_grad_()
        weights = own(data().cos(), (9, N - 9))
        y = group_whiten(x, 2, epsilon=0.1, method=method, distributed=True)
        (weights * y.sin()).sum().backward()
        results |= {method: y.detach(), f"{method}_grad": x.grad}
    torch.manual_seed(rank())  # the permutation is that of rank 0 all the same
    shuffled = shuffled_group_whiten(own(data(), (9, N - 9)), 3, distributed=True)
    return {**results, "shuffled": shuffled}


def everything() -> dict[str, Any]:
    return {"equal": memories() | one_training_step(), "shared": whitening()}
