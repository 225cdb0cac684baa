"""What the ranks of the tests in ``test_training_ranks.py`` run."""

import os
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from common.distributed import gather_rows, rank
from common.evaluation import GeometryScores, KMeansScores, RetrievalScores
from common.training import GradientCache, HealthMonitor, Method

WIDTH, DIM, N = 6, 4, 22


def rows() -> Tensor:
    return torch.randn(N, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def own_rows() -> Tensor:
    return rows()[: N // 2] if rank() == 0 else rows()[N // 2 :]


class Coupled(Method):
    """A contrast of all rows of all ranks, whose encoder is called twice a step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, DIM)).double()
        self.head = nn.Linear(DIM, DIM).double()

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Any]:
        x, _ = batch
        z, other = self.head(self.encoder(x)), self.head(self.encoder(x.flip(1)))
        everything, _ = gather_rows(other)
        loss = (z @ everything.T).logsumexp(dim=1).mean()
        return {"loss": loss, "embedding": z, "assignment": z.softmax(dim=1)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class WholeStep(nn.Module):
    def __init__(self, method: Coupled) -> None:
        super().__init__()
        self.method = method

    def forward(self, x: Tensor) -> Tensor:
        return self.method.training_step((x, x), 0)["loss"]


def gradients(micro_batch_size: int, find_unused: bool) -> list[Tensor]:
    """Of a step under DistributedDataParallel, or alone with all rows."""
    method = Coupled()
    cache = GradientCache(micro_batch_size)
    cache.on_fit_start(None, method)  # type: ignore[arg-type]
    step: nn.Module = WholeStep(method)
    if torch.distributed.is_initialized():
        step = DistributedDataParallel(step, find_unused_parameters=find_unused)
    for _ in range(2):  # the second backward meets DDP's rebuilt buckets
        step.zero_grad()
        step(own_rows() if torch.distributed.is_initialized() else rows()).backward()
    return [parameter.grad for parameter in method.parameters() if parameter.grad is not None]


def labelled() -> TensorDataset:
    return TensorDataset(rows(), torch.arange(N) % 3)


def fitted(sharded: bool = False) -> dict[str, Any]:
    """What the callbacks of a fit in this process, or of all ranks together, have found."""
    data = labelled()
    sampler = DistributedSampler(data, shuffle=False) if sharded else None
    loaders = [DataLoader(data, batch_size=4, sampler=sampler)]
    monitor = HealthMonitor(window=2)
    callbacks: list[Any] = [
        monitor,
        GradientCache(3),
        GeometryScores(loaders=loaders),
        RetrievalScores(loaders=loaders),
    ]
    if not sharded:  # k-means depends on the order, which a sampler changes
        callbacks.append(KMeansScores(loaders=loaders, n_init=2))
    model = Coupled()
    world = torch.distributed.is_initialized()
    strategy = {"strategy": "ddp", "devices": 1, "num_nodes": 2} if world else {}
    batches = DataLoader(data, batch_size=N // 2 if world else N)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        enable_checkpointing=False,
        callbacks=callbacks,
        use_distributed_sampler=world,
        **{**quiet, **strategy},
    )
    trainer.fit(model, batches)
    return {
        "weights": [parameter.detach() for parameter in model.parameters()],
        "readings": monitor.readings,
        "scores": [callback.history for callback in callbacks[2:]],
    }


def everything() -> dict[str, Any]:
    os.environ |= {"NODE_RANK": str(rank()), "LOCAL_RANK": "0"}  # where Lightning looks
    found: dict[str, Any] = {
        f"{size} {find}": gradients(size, find) for size in (100, 3) for find in (False, True)
    }
    return {**found, "fit": fitted(), "sharded": fitted(sharded=True)}
