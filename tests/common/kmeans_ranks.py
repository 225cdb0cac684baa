"""What the ranks of the tests in ``test_kmeans.py`` run."""

from typing import Any

import torch
from torch import Tensor

from common.distributed import rank
from common.errors import ArgumentError
from common.kmeans import KMeans

CASES: dict[str, dict[str, Any]] = {
    "k-means++": {"n_init": 3},
    "random": {"init": "random", "n_init": 2},
    "nested": {"init": "nested"},
    "cosine": {"metric": "cosine", "n_init": 2},
    "weights": {"weighted": True},
    "known": {"labelled": True},
    "empty": {"far": True, "max_iter": 5},
}
K = 7


def problem() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(12, 5, generator=generator, dtype=torch.float64)
    noise = torch.randn(601, 5, generator=generator, dtype=torch.float64)
    own = torch.randint(12, (601,), generator=generator)
    known = torch.where(torch.arange(601) % 3 == 0, own % 4, -1)
    return centres[own] + noise, torch.rand(601, generator=generator).double(), known


def fitted(part: slice, case: dict[str, Any], distributed: bool) -> dict[str, Any]:
    """On the rows of ``part``."""
    case = dict(case)
    x, weights, known = problem()
    weighted, labelled = case.pop("weighted", False), case.pop("labelled", False)
    if case.pop("far", False):
        case["init"] = torch.cat([x[: K - 2], x[:2] + 1e4])
    kmeans = KMeans(K, seed=5, distributed=distributed, **case)
    kmeans.fit(x[part], weights[part] if weighted else None, known[part] if labelled else None)
    return {
        "centroids": kmeans.centroids,
        "labels": kmeans.labels,
        "inertia": kmeans.inertia,
        "n_iter": kmeans.n_iter,
    }


def in_steps(part: slice, distributed: bool) -> Tensor:
    """Centroids of three mini-batches; of each, a rank has its share."""
    x, weights, _ = problem()
    kmeans = KMeans(K, seed=5, distributed=distributed)
    for batch, weight in zip(x[:600].split(200), weights[:600].split(200), strict=True):
        kmeans.partial_fit(batch[part], weight[part])
    return kmeans.centroids


def on_each() -> dict[str, Any]:
    own = slice(0, 150) if rank() == 0 else slice(150, None)
    found: dict[str, Any] = {name: fitted(own, case, True) for name, case in CASES.items()}
    found["steps"] = in_steps(own, True)
    x = problem()[0][own]
    if rank() == 1:
        x[3] = float("nan")
    try:
        KMeans(K, distributed=True).fit(x)
    except ArgumentError as error:
        found["refused"] = str(error)
    torch.manual_seed(rank())
    found["unseeded"] = KMeans(K, distributed=True).fit(problem()[0][own]).centroids
    return found
