"""Embeddings in two dimensions, for the plot."""

from pathlib import Path

import numpy as np
from torch import Tensor

from benchmarks.harness.store import replacing

SHOWN = 1000


def save_projection(path: Path, z: Tensor, y: Tensor) -> None:
    """Writes the t-SNE of up to 1,000 samples, the same ones for all methods.

    Args:
        path: of an ``.npz`` with ``points (m, 2)``, their labels ``y (m,)``, and ``n``.
        z: ``(n, d)`` embeddings.
        y: ``(n,)`` labels.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    n = len(z)
    chosen = np.random.default_rng(0).permutation(n)[:SHOWN]
    tsne = TSNE(init="pca", perplexity=min(30.0, (len(chosen) - 1) / 3), random_state=0)
    with threadpool_limits(1):  # more threads are slower on so few points
        points = tsne.fit_transform(z.numpy()[chosen])
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, points=points, y=y.numpy()[chosen], n=n)
