import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from common.errors import ArgumentError
from common.kmeans import KMeans, balanced_labels


def problem(n: int, k: int, seed: int = 0, kind: str = "normal") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if kind == "integers":  # many equal rows, equal centroids and equal distances
        draw = torch.randint(0, 2, (n + k, 4), generator=generator).float()
        return draw[:n], draw[n:]
    x, centroids = torch.randn(n + k, 4, generator=generator).split([n, k])
    return (0.1 * x if kind == "clump" else x), centroids


def squared_distances(x: Tensor, centroids: Tensor) -> Tensor:
    return (x.double()[:, None] - centroids.double()).square().sum(dim=2)


def least_cost(cost: Tensor, max_size: int) -> float:
    """The optimum by the Hungarian method, every cluster ``max_size`` columns."""
    columns = cost.repeat_interleave(max_size, dim=1).numpy()
    return float(columns[linear_sum_assignment(columns)].sum())


def assert_optimal(x: Tensor, centroids: Tensor, max_size: int, **options) -> None:
    labels = balanced_labels(x, centroids, max_size, **options)
    assert labels.shape == (len(x),)
    assert labels.dtype == torch.int64
    assert labels.bincount(minlength=len(centroids)).max() <= max_size
    cost = squared_distances(x, centroids)
    own = float(cost.gather(1, labels[:, None]).sum())
    scale = len(x) * float(cost.max())
    assert own == pytest.approx(least_cost(cost, max_size), rel=0, abs=1e-12 * scale)


@pytest.mark.parametrize("kind", ["normal", "clump", "integers"])
@pytest.mark.parametrize(
    ("n", "k", "max_size"),
    [(30, 3, 10), (30, 3, 12), (29, 4, 8), (9, 9, 1), (7, 9, 1), (400, 10, 40), (400, 10, 55)],
)
def test_no_assignment_is_better(n, k, max_size, kind):
    for seed in range(3):
        assert_optimal(*problem(n, k, seed, kind), max_size)


@pytest.mark.parametrize("max_size", [100, 120])
def test_a_medium_problem_is_exact(max_size):
    x, centroids = problem(900, 9)
    centroids[0] = 0  # wanted by most rows
    assert_optimal(x, centroids, max_size)


def test_a_small_budget_gives_the_same_labels():
    x, centroids = problem(120, 6)
    whole = balanced_labels(x, centroids, 20)
    for budget in (1, 1 << 10):
        assert torch.equal(balanced_labels(x, centroids, 20, memory_budget=budget), whole)


@pytest.mark.parametrize("kind", ["normal", "integers"])
def test_without_a_limit_labels_are_the_nearest_centroids(kind):
    x, centroids = problem(300, 7, kind=kind)
    nearest = squared_distances(x, centroids).argmin(dim=1)
    assert torch.equal(balanced_labels(x, centroids, len(x)), nearest)
    assert torch.equal(balanced_labels(x, centroids, int(nearest.bincount().max())), nearest)


def test_equal_rows_are_spread():
    sizes = balanced_labels(torch.ones(1000, 3), torch.ones(8, 3), 125).bincount()
    assert sizes.tolist() == [125] * 8
    near, far = torch.zeros(3), torch.ones(3)
    sizes = balanced_labels(torch.zeros(10, 3), torch.stack([far, near, 2 * far]), 6).bincount()
    assert sizes.tolist() == [4, 6]


def test_one_cluster_takes_every_row():
    assert balanced_labels(torch.randn(5, 2), torch.zeros(1, 2), 5).tolist() == [0] * 5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_any_precision_comes_in(dtype):
    x, centroids = (part.to(dtype) for part in problem(60, 4))
    assert_optimal(x, centroids, 15)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_does_not_matter(scale):
    x, centroids = problem(200, 5)
    expected = balanced_labels(x.double(), centroids.double(), 40)
    assert torch.equal(
        balanced_labels(x.double() * scale, centroids.double() * scale, 40), expected
    )
    largest = torch.finfo(torch.float64).max / 2
    extreme = torch.tensor([[largest], [-largest], [largest]], dtype=torch.float64)
    assert balanced_labels(extreme, extreme[:2], 2).tolist() == [0, 1, 0]


def test_far_from_the_origin_labels_stay():
    x, centroids = (part.double() for part in problem(200, 5))
    expected = balanced_labels(x, centroids, 40)
    assert torch.equal(balanced_labels(x + 1e6, centroids + 1e6, 40), expected)


def test_rows_may_carry_a_gradient_and_stay_untouched():
    x, centroids = problem(50, 5)
    kept = x.clone(), centroids.clone()
    labels = balanced_labels(x.requires_grad_(), centroids, 10)
    assert not labels.requires_grad
    assert torch.equal(labels, balanced_labels(x, centroids, 10))
    assert torch.equal(x, kept[0])
    assert torch.equal(centroids, kept[1])


def test_many_rows_fill_the_clusters_evenly_in_seconds():
    """Optimal by its prices: swapping rows between two clusters never pays."""
    x, centroids = problem(10_000, 20)
    labels = balanced_labels(x, centroids, 500)
    assert labels.bincount().tolist() == [500] * 20
    cost = squared_distances(x, centroids)
    extra = cost - cost.gather(1, labels[:, None])
    moves = torch.stack([extra[labels == j].amin(dim=0) for j in range(20)])  # (k, k)
    paths = moves.clone()
    for j in range(20):  # shortest paths of any length, so that no cycle of moves is missed
        paths = torch.minimum(paths, paths[:, j, None] + paths[j])
    assert paths.diagonal().min() >= -1e-10


def test_with_one_iteration_of_k_means_it_makes_even_clusters():
    x, _ = problem(120, 6)
    kmeans = KMeans(6, seed=0).fit(x)
    labels = balanced_labels(x, kmeans.centroids, 20)
    assert labels.bincount().tolist() == [20] * 6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_equals_cpu():
    x, centroids = problem(300, 6)
    labels = balanced_labels(x.cuda(), centroids.cuda(), 50)
    assert labels.is_cuda
    assert torch.equal(labels.cpu(), balanced_labels(x, centroids, 50))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"x": torch.ones(4)}, r"x must have shape \(n, d\), got \(4,\)"),
        ({"x": torch.ones(4, 2, dtype=torch.int64)}, "x must be a dense floating-point tensor"),
        ({"x": [[1.0, 2.0]]}, "x must be a dense floating-point tensor, got list"),
        ({"x": torch.full((4, 2), math.nan)}, "x must be finite"),
        ({"centroids": torch.ones(2, 3)}, r"centroids must have shape \(k, 2\), got \(2, 3\)"),
        ({"centroids": torch.full((2, 2), math.inf)}, "centroids must be finite"),
        ({"max_size": 1}, "max_size must be at least .* 2 for n=4 and k=2, got 1"),
        ({"max_size": 0}, "max_size must be an integer of at least 1, got 0"),
        ({"max_size": 2.0}, "max_size must be an integer"),
        ({"memory_budget": 0}, "memory_budget"),
    ],
)
def test_a_wrong_argument_is_named(arguments, named):
    valid = {"x": torch.rand(4, 2), "centroids": torch.rand(2, 2), "max_size": 2}
    with pytest.raises(ArgumentError, match=named):
        balanced_labels(**(valid | arguments))
