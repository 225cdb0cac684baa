"""A small graph with three clear clusters, and small methods that train on it in a second."""

import torch
from lightning import Trainer

from graphs import SCGC, AttributedGraph, PamC

N, IN_DIM, K = 90, 12, 3
SMALL = {"hidden_dims": (16, 16), "embedding_dim": 4, "kmeans_restarts": 2}
METHODS = {
    "scgc": lambda **kwargs: SCGC(IN_DIM, K, variant="scgc", **{**SMALL, **kwargs}),
    "scgc*": lambda **kwargs: SCGC(IN_DIM, K, variant="scgc*", **{**SMALL, **kwargs}),
    "pamc": lambda **kwargs: PamC(IN_DIM, K, **{**SMALL, **kwargs}),
}


def blobs(sparse: bool = False) -> AttributedGraph:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(N) % K
    x = torch.eye(K).repeat_interleave(IN_DIM // K, dim=1)[y]
    x = (x + 0.15 * torch.randn(N, IN_DIM, generator=generator)).relu()
    return AttributedGraph.from_arrays(x, y=y, n_neighbors=3, sparse=sparse)


def trainer(max_epochs: int, **kwargs) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"accelerator": "cpu", "enable_checkpointing": False, "limit_val_batches": 0}
    return Trainer(max_epochs=max_epochs, **{**quiet, **options, **kwargs})
