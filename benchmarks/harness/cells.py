"""Computes one cell, in a process of its own."""

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from benchmarks.harness.embedding import embed
from benchmarks.harness.plan import Cell
from benchmarks.harness.projection import save_projection
from benchmarks.harness.provenance import commit, machine, versions
from benchmarks.harness.recipes import Recipe, load_data
from benchmarks.harness.store import (
    FORMAT,
    Record,
    checkpoint_path,
    projection_path,
    replacing,
)
from common.evaluation import ClusteringScores, cluster_embeddings
from common.files import file_sha256

Report = Callable[[int, int], None]
Evaluated = tuple[Record, Tensor, Tensor]

DECIMALS = 6


class EpochReport(Callback):
    """Tells how many epochs of how many are done."""

    def __init__(self, report: Report):
        self.report = report

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.report(trainer.current_epoch + 1, trainer.max_epochs or 0)


def compute(cell: Cell, folder: Path, command: str, report: Report) -> Record:
    """The record of a cell; writes its checkpoint and projection where they are to be kept."""
    started = datetime.now(UTC)
    clock = time.perf_counter()
    seed_everything(cell.seed, workers=True)
    evaluate = cluster_features if cell.score == "features" else train
    result, z, y = evaluate(cell, folder, report)
    seconds = time.perf_counter() - clock
    if cell.keep_embedding:
        save_projection(projection_path(folder, cell.key), z, y)
    return {
        "format": FORMAT,
        "key": cell.key,
        "row": cell.row,
        "dataset": cell.dataset,
        "seed": cell.seed,
        "scale": cell.scale,
        "score": cell.score,
        **result,
        "recipe": list(cell.recipe),
        "overrides": dict(cell.overrides),
        "settings": dict(cell.settings),
        "starts_from": cell.starts_from,
        "data_checksum": cell.data_checksum,
        "code_version": cell.code_version,
        **commit(),
        "versions": versions(),
        "machine": machine(torch.get_num_threads()),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 2),
        "command": command,
    }


def cluster_features(cell: Cell, folder: Path, report: Report) -> Evaluated:
    """k-means on the raw features; nothing is trained."""
    data = load_data(cell.settings)
    batches = list(data.predict_dataloader())
    x = torch.cat([batch.x.to_dense() for batch in batches])  # (n, d)
    y = torch.cat([batch.y for batch in batches])  # (n,)
    result = {"device": str(x.device), "epochs": 0}
    return result | outcome([cluster(x, y, data.n_clusters, cell.seed)]), x, y


def train(cell: Cell, folder: Path, report: Report) -> Evaluated:
    """Trains the method as ``clustrast fit`` does, scores it, keeps what others start from."""
    settings = deepcopy(dict(cell.settings))
    if cell.starts_from:
        put(settings, cell.start_key, str(checkpoint_path(folder, cell.starts_from)))
    recipe = Recipe.from_settings(settings)
    recipe.build(callbacks=[EpochReport(report)])
    model, data, trainer = recipe.model, recipe.datamodule, recipe.trainer
    scores = find_scores(trainer) if cell.score == "assign" else None
    recipe.prepare()
    trainer.fit(model, data)

    result: Record = {"device": str(trainer.strategy.root_device), "epochs": trainer.current_epoch}
    if cell.keep_checkpoint:
        path = checkpoint_path(folder, cell.key)
        with replacing(path) as temporary:
            trainer.save_checkpoint(temporary)
        result["checkpoint_sha256"] = file_sha256(path)
    arrays = embed(model, data)
    z, y = torch.from_numpy(arrays["embedding"]), torch.from_numpy(arrays["y"])
    if scores:
        history = [*scores.history, scores.final]
    else:
        history = [cluster(z, y, data.n_clusters, cell.seed)]
    return result | outcome(history), z, y


def find_scores(trainer: Any) -> ClusteringScores:
    """The callback of the recipe that scores the training, or a new one."""
    for callback in trainer.callbacks:
        if isinstance(callback, ClusteringScores):
            return callback
    scores = ClusteringScores()
    trainer.callbacks.append(scores)
    return scores


def cluster(x: Tensor, y: Tensor, n_clusters: int, seed: int) -> dict[str, Any]:
    """Scores and cluster sizes of k-means on ``x (n, d)`` against ``y (n,)``."""
    scores, labels = cluster_embeddings(x, y, n_clusters, seed=seed)
    return {**scores, "sizes": torch.bincount(labels, minlength=n_clusters).tolist()}


def outcome(history: Sequence[Mapping[str, Any]]) -> Record:
    """Scores of the last state, and the best that labels could have chosen, metric by metric.

    Args:
        history: scores and cluster ``sizes`` before the first step, after each epoch, at the end.

    Example:
        >>> found = outcome([{"acc": 0.5, "sizes": [1, 1]}, {"acc": 0.9, "sizes": [1, 1]},
        ...                  {"acc": 0.8, "sizes": [2, 0]}])
        >>> found["metrics"]
        {'last': {'acc': 0.8}, 'oracle': {'acc': 0.9}, 'oracle_epoch': {'acc': 1}}
    """
    rounded = [
        {
            name: value if name == "sizes" else round(value, DECIMALS)
            for name, value in entry.items()
            if name not in ("epoch", "step")
        }
        for entry in history
    ]
    names = [name for name in rounded[-1] if name != "sizes"]
    best = {name: max(range(len(rounded)), key=lambda i: rounded[i][name]) for name in names}
    return {
        "metrics": {
            "last": {name: rounded[-1][name] for name in names},
            "oracle": {name: rounded[best[name]][name] for name in names},
            "oracle_epoch": best,
        },
        "history": rounded,
    }


def put(settings: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key."""
    *parents, last = key.split(".")
    for parent in parents:
        settings = settings[parent]
    settings[last] = value
