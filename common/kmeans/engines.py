"""What finds the nearest centroid of each row, and the rule that chooses between the engines."""

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from common.errors import ArgumentError

Engine = Literal["torch", "faiss", "triton"]
Search = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]


def choose_engine(x: Tensor, n_clusters: int) -> Engine:
    """The faster engine for ``(n, d)`` rows: the rule behind ``engine="auto"``.

    faiss, if it is installed, for float32 rows on the CPU from 50 clusters and 1e8 multiplications
    (n d k) an iteration on. Time of faiss over torch for one search, least of 6 to 12, on 1 and on
    2 cores of an x86-64 server with AVX-512, restarts batched as :class:`KMeans` does it:

    ========================= ====== ======   ========================= ====== ======
    (n, d, k), restarts       1 core 2 cores  (n, d, k), restarts       1 core 2 cores
    ========================= ====== ======   ========================= ====== ======
    (1797, 10, 10), 20        1.25   1.23     (50000, 64, 50), 1        0.83   0.89
    (9298, 10, 10), 7         1.10   0.97     (50000, 16, 100), 1       0.58   0.66
    (3025, 1870, 3), 20       6.70   7.64     (50000, 64, 500), 1       0.80   0.79
    (50000, 64, 20), 1        1.14   1.22     (60000, 384, 1000), 1     0.88   0.91
    ========================= ====== ======   ========================= ====== ======

    Below 1e8 multiplications an iteration takes a few milliseconds, and importing faiss costs more
    than it saves. Never on macOS, where faiss and torch each bring an OpenMP runtime, and the two
    in one process crash.

    torch on every other device. The Triton kernel has been compared with torch in Triton's
    interpreter and compiled for CUDA, but not yet timed on a GPU, so it is there to be asked for.

    Example:
        >>> choose_engine(torch.zeros(1797, 10), n_clusters=10)
        'torch'
    """
    eligible = x.device.type == "cpu" and x.dtype != torch.float64 and sys.platform != "darwin"
    worthwhile = n_clusters >= 50 and x.numel() * n_clusters >= 1e8
    return "faiss" if eligible and worthwhile and find_spec("faiss") else "torch"


def torch_nearest(
    x: Tensor, norms: Tensor, centroids: Tensor, budget: int
) -> tuple[Tensor, Tensor]:
    """Nearest centroid and its squared distance, ``(r, n)`` each, for restarts ``(r, k, d)``."""
    restarts, k, d = centroids.shape
    flat = centroids.reshape(-1, d)
    half_norms = flat.square().sum(dim=1, keepdim=True) / 2
    labels = torch.empty(restarts, len(x), dtype=torch.int64, device=x.device)
    scores = torch.empty(restarts, len(x), dtype=x.dtype, device=x.device)
    block = max(1, budget // (x.element_size() * len(flat)))
    for begin in range(0, len(x), block):
        part = slice(begin, begin + block)
        score = torch.addmm(half_norms, flat, x[part].T, alpha=-1).view(restarts, k, -1)
        scores[:, part], labels[:, part] = score.min(dim=1)
    return labels, (2 * scores + norms).clamp_min_(0)


def faiss_nearest(
    x: Tensor, norms: Tensor, centroids: Tensor, budget: int
) -> tuple[Tensor, Tensor]:
    """:func:`torch_nearest` by faiss's exact search over float32 rows on the CPU."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        raise ArgumentError(
            f"engine 'faiss' takes float32 or half rows on the CPU, got {x.dtype} on {x.device}"
        )
    try:
        import faiss
    except ImportError as missing:
        raise ArgumentError("engine 'faiss' needs the package faiss-cpu or faiss-gpu") from missing
    rows = x.contiguous().numpy()
    found: list[tuple[Any, Any]] = [faiss.knn(rows, c.numpy(), 1) for c in centroids]
    labels = torch.stack([torch.from_numpy(index)[:, 0] for _, index in found])
    cost = torch.stack([torch.from_numpy(distance)[:, 0] for distance, _ in found])
    return labels, cost.clamp_min_(0)


def triton_nearest(
    x: Tensor, norms: Tensor, centroids: Tensor, budget: int
) -> tuple[Tensor, Tensor]:
    """:func:`torch_nearest` by a kernel that keeps its distances in registers."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if (x.device.type != "cuda" and not interpreted) or x.dtype != torch.float32:
        raise ArgumentError(
            f"engine 'triton' takes float32 or half rows on a CUDA device, "
            f"got {x.dtype} on {x.device}"
        )
    try:
        from common.kmeans.triton_kernels import nearest_scores
    except ImportError as missing:
        raise ArgumentError("engine 'triton' needs the package triton") from missing
    labels, scores = nearest_scores(x, centroids)
    return labels, (2 * scores + norms).clamp_min_(0)


SEARCHES: dict[str, Search] = {
    "torch": torch_nearest,
    "faiss": faiss_nearest,
    "triton": triton_nearest,
}


def superkmeans_centroids(x: Tensor, n_clusters: int, seed: int, *, spherical: bool) -> Tensor:
    """Centroids ``(k, d)`` of the package superkmeans' approximate k-means, as it comes."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        raise ArgumentError(
            f"init 'superkmeans' takes float32 or half rows on the CPU, got {x.dtype} on {x.device}"
        )
    try:
        from superkmeans import SuperKMeans
    except ImportError as missing:
        raise ArgumentError("init 'superkmeans' needs the package superkmeans") from missing
    model = SuperKMeans(
        n_clusters,
        x.shape[1],
        hierarchical=False,
        n_threads=torch.get_num_threads(),
        seed=seed % 2**31,
        angular=spherical,
    )
    centroids = torch.from_numpy(model.train(x.contiguous().numpy()))
    return torch.nn.functional.normalize(centroids) if spherical else centroids
