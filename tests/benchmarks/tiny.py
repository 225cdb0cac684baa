"""A clustering method of a few hundred parameters, for tests of the harness that train for real."""

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.harness import plan
from benchmarks.harness.reproduce import Options, reproduce
from benchmarks.harness.table import Row, Scale, Table
from common.errors import ArgumentError
from common.training import Method

FROZEN = "frozen"


class Batch(SimpleNamespace):
    """Nodes ``x (n, d)`` with labels ``y (n,)``."""

    def to(self, device: torch.device) -> "Batch":
        return Batch(x=self.x.to(device), y=self.y.to(device))


class Blobs(LightningDataModule):
    """Gaussian blobs; one epoch is one batch of all points."""

    def __init__(self, dataset: str = "blobs", n: int = 60, n_clusters: int = 3):
        super().__init__()
        self.dataset, self.n, self.n_clusters = dataset, n, n_clusters
        self.in_dim = 4
        self.checksum = f"{dataset}-{n}-{n_clusters}"

    def setup(self, stage: str | None = None) -> None:
        generator = torch.Generator().manual_seed(len(self.dataset))
        centres = 4 * torch.randn(self.n_clusters, self.in_dim, generator=generator)
        y = torch.arange(self.n) % self.n_clusters
        x = centres[y] + torch.randn(self.n, self.in_dim, generator=generator)
        self.batch = Batch(x=x, y=y)

    def loader(self) -> DataLoader:
        return DataLoader([self.batch], batch_size=None)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, index: int) -> Batch:
        return batch.to(device)


class Tiny(Method):
    """A linear encoder and centres, trained by the distance to the nearest centre.

    ``accident`` makes one seed misbehave: ``raise``, ``kill`` (the process dies), ``slow``.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = torch.optim.Adam,
        n_clusters: int = 3,
        alpha: float = 1.0,
        autoencoder: str | None = None,
        accident: str | None = None,
        accident_seed: int | None = None,
        seconds_per_epoch: float = 0.0,
    ):
        super().__init__()
        if alpha < 0:
            raise ArgumentError(f"alpha must be at least 0, got {alpha}")
        self.make_optimizer = optimizer
        self.alpha, self.seconds_per_epoch = alpha, seconds_per_epoch
        self.accident = accident if accident_seed in (None, torch.initial_seed()) else None
        self.encoder = nn.Linear(4, 2)
        self.centres = nn.Parameter(torch.randn(n_clusters, 2))
        self.prepared = False
        if autoencoder is not None:
            state = torch.load(autoencoder, weights_only=True)["state_dict"]
            self.encoder.load_state_dict(
                {
                    k.removeprefix("encoder."): v
                    for k, v in state.items()
                    if k.startswith("encoder.")
                }
            )

    def before_fit(self, datamodule: LightningDataModule, **trainer_options: Any) -> None:
        datamodule.setup("fit")
        self.prepared = True

    def encode(self, batch: Batch) -> Tensor:
        return self.encoder(batch.x)  # (n, 2)

    def assign(self, batch: Batch) -> Tensor:
        return torch.cdist(self.encode(batch), self.centres).neg().softmax(dim=1)  # (n, k)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        if not self.prepared:
            raise RuntimeError("before_fit was not called")
        time.sleep(self.seconds_per_epoch)
        match self.accident:
            case "raise":
                raise ArgumentError("accident must be absent, got raise")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        distance = torch.cdist(self.encode(batch), self.centres)  # (n, k)
        loss = distance.min(dim=1).values.mean() + self.alpha * distance.mean()
        return {"loss": loss, "assignment": distance.neg().softmax(dim=1).detach()}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters())


def tiny_table(accident: dict | None = None, seconds_per_epoch: float = 0.0) -> Table:
    """Raw features, a pre-trained row, two rows that start from it; the last may misbehave."""
    slow = {"model.init_args.seconds_per_epoch": seconds_per_epoch}
    bad = {f"model.init_args.{key}": value for key, value in (accident or {}).items()}
    recipe = "tests/benchmarks/recipes/{dataset}.yaml"
    return Table(
        name="tiny",
        title="A table for tests",
        domain="tests.benchmarks",
        rows=(
            Row("features", recipe, score="features"),
            Row("start", recipe, score="kmeans", overrides=slow),
            Row("alpha", recipe, overrides=slow, starts_from="start"),
            Row(
                "alpha = 0",
                recipe,
                overrides={"model.init_args.alpha": 0.0, **slow, **bad},
                starts_from="start",
            ),
            Row("extra", recipe, overrides=slow, optional=True),
        ),
        scales={
            "small": Scale(
                datasets=("blobs",),
                others=("rings",),
                seeds=2,
                overlay="small.yaml",
                as_is=("blobs",),
            ),
            "paper": Scale(datasets=("blobs", "rings"), seeds=2),
        },
        metrics={"acc": "ACC", "nmi": "NMI", "ari": "ARI", "f1": "F1"},
    )


def main(folder: str, seconds_per_epoch: str, jobs: str) -> int:
    """``python -m tests.benchmarks.tiny FOLDER SECONDS JOBS``: a reproduction as a process."""
    plan.code_version = lambda *_: FROZEN
    table = tiny_table(seconds_per_epoch=float(seconds_per_epoch))
    return reproduce(table, Options(out=Path(folder), jobs=int(jobs)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
