import math

import numpy as np
import pytest
import torch
from torch import Tensor

from common.errors import ArgumentError
from common.kmeans import KMeans, RaggedClusters, ragged_kmeans


def problems(
    b: int = 25, longest: int = 40, d: int = 6, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, longest + 1, (b,), generator=generator)
    return torch.randn(int(lengths.sum()), d, generator=generator, dtype=dtype), lengths


def parts(clusters: RaggedClusters, lengths: Tensor) -> list[tuple[Tensor, Tensor, float]]:
    """Centroids, labels and inertia of each problem."""
    centroids = clusters.centroids.split(clusters.cluster_lengths.tolist())
    labels = clusters.labels.split(lengths.tolist())
    return list(zip(centroids, labels, clusters.inertia.tolist(), strict=True))


def slow_seeds(x: np.ndarray, k: int) -> np.ndarray:
    """The row nearest to the mean, then the farthest from its nearest seed."""
    mean = x.mean(axis=0)
    seeds = [min(range(len(x)), key=lambda i: (((x[i] - mean) ** 2).sum(), i))]
    while len(seeds) < k:
        rest = [i for i in range(len(x)) if i not in seeds]
        gaps = {i: min(((x[i] - x[s]) ** 2).sum() for s in seeds) for i in rest}
        seeds.append(max(rest, key=lambda i: (gaps[i], -i)))
    return x[seeds]


def slow_kmeans(x: np.ndarray, centroids: np.ndarray, max_iter: int) -> np.ndarray:
    """Labels as the module promises them, one row at a time."""
    k = len(centroids)

    def assign() -> np.ndarray:
        distances = ((x[:, None] - centroids) ** 2).sum(axis=2)
        labels, cost = distances.argmin(axis=1), distances.min(axis=1)
        for j in range(k):
            if not (labels == j).any():
                spare = [i for i in range(len(x)) if (labels == labels[i]).sum() > 1]
                row = max(spare, key=lambda i: (cost[i], -i))
                labels[row], cost[row] = j, 0
        return labels

    for _ in range(max_iter):
        labels = assign()
        moved = np.stack([x[labels == j].mean(axis=0) for j in range(k)])
        if (moved == centroids).all():
            break
        centroids = moved
    return assign()


@pytest.mark.parametrize("max_iter", [1, 20])
@pytest.mark.parametrize("far", [False, True])
def test_agrees_with_the_loops(max_iter, far):
    """``far``: from centroids of which half are far from all rows, so that they lose them."""
    x, lengths = problems()
    n_clusters = (lengths // 3).clamp_min(1)
    rows = [part.numpy() for part in x.split(lengths.tolist())]
    seeds = [slow_seeds(part, int(k)) for part, k in zip(rows, n_clusters, strict=True)]
    if far:
        for start in seeds:
            start[1::2] += 100 * np.arange(1, len(start[1::2]) + 1)[:, None]
    init = torch.from_numpy(np.concatenate(seeds)) if far else "farthest"
    found = ragged_kmeans(x, lengths, n_clusters, init=init, max_iter=max_iter, tol=0)
    assert torch.equal(found.cluster_lengths, n_clusters)
    for part, start, own in zip(rows, seeds, parts(found, lengths), strict=True):
        centroids, labels, inertia = own
        assert labels.tolist() == slow_kmeans(part, start, max_iter).tolist()
        means = [part[labels.numpy() == j].mean(axis=0) for j in range(len(start))]
        np.testing.assert_allclose(centroids.numpy(), means, atol=1e-12)
        assert inertia == pytest.approx(((part - centroids[labels].numpy()) ** 2).sum(), abs=1e-12)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("weighted", [False, True])
def test_is_the_estimator_problem_by_problem(metric, weighted):
    x, lengths = problems()
    weights = torch.linspace(0.1, 2, len(x), dtype=x.dtype) if weighted else None
    n_clusters = torch.arange(len(lengths)) % 5 + 1
    n_clusters = torch.minimum(n_clusters, lengths)
    heads = lengths.cumsum(0) - lengths
    init = torch.cat([x[h : h + k] for h, k in zip(heads, n_clusters, strict=True)])
    options = {"metric": metric, "tol": 0, "max_iter": 50}
    found = ragged_kmeans(x, lengths, n_clusters, init=init, weights=weights, **options)
    split = [part.split(lengths.tolist()) for part in (x, weights if weighted else x[:, 0])]
    starts = init.split(n_clusters.tolist())
    for rows, w, start, own in zip(*split, starts, parts(found, lengths), strict=True):
        kmeans = KMeans(len(start), init=start, **options).fit(rows, w if weighted else None)
        centroids, labels, inertia = own
        if len(start) < len(rows):  # else row i is cluster i here
            assert torch.equal(labels, kmeans.labels)
            torch.testing.assert_close(centroids, kmeans.centroids)
        assert inertia == pytest.approx(kmeans.inertia, abs=1e-12)


def test_draws_are_those_of_the_estimator():
    x, lengths = problems(12, 90)
    lengths = lengths[lengths > 20]
    x = x[: int(lengths.sum())]
    for n_init in (1, 3):
        found = ragged_kmeans(x, lengths, 4, seed=5, n_init=n_init)
        for rows, own in zip(x.split(lengths.tolist()), parts(found, lengths), strict=True):
            kmeans = KMeans(4, seed=5, n_init=n_init).fit(rows)
            assert torch.equal(own[1], kmeans.labels)


@pytest.mark.parametrize("init", ["k-means++", "farthest"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_company_and_budget_change_nothing(init, dtype):
    x, lengths = problems(dtype=dtype)
    n_clusters = torch.arange(len(lengths)) % 6 + 1
    options = {"init": init, "seed": 1, "n_init": 2}
    together = ragged_kmeans(x, lengths, n_clusters, **options)
    tight = ragged_kmeans(x, lengths, n_clusters, memory_budget=1, **options)
    assert torch.equal(together.labels, tight.labels)
    rows = x.split(lengths.tolist())
    for i, (centroids, labels, inertia) in enumerate(parts(together, lengths)):
        alone = ragged_kmeans(rows[i], lengths[i : i + 1], n_clusters[i : i + 1], **options)
        assert torch.equal(alone.labels, labels)
        torch.testing.assert_close(alone.centroids, centroids, rtol=1e-6, atol=1e-7)
        assert float(alone.inertia) == pytest.approx(inertia, rel=1e-5, abs=1e-6)


def test_a_seed_gives_the_same_and_leaves_the_global_generator():
    x, lengths = problems()
    state = torch.get_rng_state()
    first, second, other = (ragged_kmeans(x, lengths, 4, seed=s) for s in (0, 0, 1))
    assert torch.equal(first.labels, second.labels)
    assert not torch.equal(first.labels, other.labels)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_restarts_never_raise_the_objective(metric):
    x, lengths = problems(20, 60)
    once, often = (ragged_kmeans(x, lengths, 5, metric=metric, n_init=n) for n in (1, 8))
    assert once.inertia.shape == lengths.shape
    assert float(often.inertia.sum()) < float(once.inertia.sum())


def test_the_gradient_is_that_of_means_of_constant_clusters():
    x = torch.tensor([[0.0, 1.0], [1.0, 3.0], [2.0, 0.0], [5.0, 5.0], [4.0, 7.0]]).double()
    weights = torch.tensor([0.5, 1.0, 2.0, 0.1, 1.0])
    x.requires_grad_()
    for metric in ("euclidean", "cosine"):

        def centroids(x: Tensor, metric: str = metric) -> Tensor:
            found = ragged_kmeans(x, torch.tensor([2, 3]), 2, metric=metric, weights=weights)
            return found.centroids

        assert torch.autograd.gradcheck(centroids, x)
        assert torch.autograd.gradgradcheck(centroids, x)
    square = torch.tensor([[0.0, 0.0], [0.0, 2.0], [10.0, 0.0], [10.0, 2.0]], requires_grad=True)
    ragged_kmeans(square, torch.tensor([4]), 2, init="farthest").centroids[:, 0].sum().backward()
    assert square.grad.tolist() == [[0.5, 0.0]] * 4


def test_as_many_clusters_as_rows_leave_the_rows_as_they_are():
    x, lengths = problems(8, 6)
    found = ragged_kmeans(x, lengths, 6)
    assert torch.equal(found.cluster_lengths, lengths)
    assert torch.equal(found.centroids, x)
    assert found.inertia.tolist() == [0.0] * 8


def test_one_cluster_is_the_mean():
    x, lengths = problems(8, 6)
    found = ragged_kmeans(x, lengths, 1)
    means = torch.stack([rows.mean(dim=0) for rows in x.split(lengths.tolist())])
    torch.testing.assert_close(found.centroids, means)


@pytest.mark.parametrize("init", ["k-means++", "farthest"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_equal_rows_fill_every_cluster(init, metric):
    x = torch.tensor([[1.0, 0.0]] * 5 + [[0.0, 1.0]] * 2 + [[3.0, 3.0]] * 9)
    found = ragged_kmeans(x, torch.tensor([7, 9]), 4, init=init, metric=metric)
    first, second = found.labels.split([7, 9])
    assert first.bincount(minlength=4).min() > 0
    assert second.bincount(minlength=4).min() > 0
    assert found.centroids.isfinite().all()
    assert found.inertia.tolist() == pytest.approx([0, 0], abs=1e-6)


def test_empty_problems_and_rows_without_weight():
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 0, 0, 0])
    found = ragged_kmeans(x, torch.tensor([0, 7, 3]), 9, weights=weights)
    assert found.cluster_lengths.tolist() == [0, 5, 0]
    assert found.labels[7:].tolist() == [-1, -1, -1]
    assert found.inertia.tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    kept = weights[:7] > 0
    assert sorted(found.labels[:7][kept].tolist()) == list(range(5))
    torch.testing.assert_close(found.centroids[found.labels[:7][kept]], x[:7][kept])


def test_a_row_without_weight_is_as_if_it_were_not_there():
    x, lengths = problems(20, 30)
    lengths = lengths[lengths > 8]
    x = x[: int(lengths.sum())]
    weights = (torch.arange(len(x)) % 4 > 0).to(x.dtype)
    kept = weights > 0
    counts = torch.stack([part.sum() for part in kept.split(lengths.tolist())])
    full = ragged_kmeans(x, lengths, 3, init="farthest", weights=weights)
    less = ragged_kmeans(x[kept], counts, 3, init="farthest")
    torch.testing.assert_close(full.centroids, less.centroids)
    assert torch.equal(full.labels[kept], less.labels)


def test_zero_rows_have_no_direction():
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    x[[1, 5]] = 0
    found = ragged_kmeans(x, torch.tensor([12]), 3, metric="cosine")
    assert found.labels[[1, 5]].tolist() == [0, 0]
    torch.testing.assert_close(found.centroids.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_any_precision_comes_in(dtype):
    x, lengths = problems(dtype=torch.float32)
    x = x.to(dtype)
    found = ragged_kmeans(x, lengths, 3)
    assert found.centroids.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(found.labels, ragged_kmeans(x.to(found.centroids.dtype), lengths, 3).labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(found.labels, ragged_kmeans(x, lengths, 3).labels)


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1e4, 1e30])
def test_each_problem_has_its_own_scale(scale):
    x, lengths = problems(6, 20)
    scales = torch.ones(6, dtype=x.dtype)
    scales[::2] = scale
    scaled = x * scales.repeat_interleave(lengths)[:, None]
    expected = ragged_kmeans(x, lengths, 3).labels
    assert torch.equal(ragged_kmeans(scaled, lengths, 3).labels, expected)
    assert torch.equal(ragged_kmeans(scaled.float(), lengths, 3).labels, expected)


def test_far_from_the_origin_labels_stay():
    x, lengths = problems(6, 20)
    expected = ragged_kmeans(x, lengths, 3)
    shifted = ragged_kmeans(x + 1e6, lengths, 3)
    assert torch.equal(shifted.labels, expected.labels)


def test_permuted_rows_give_the_same_centroids():
    x, lengths = problems(6, 20)
    order = torch.cat(
        [
            head + torch.randperm(int(length), generator=torch.Generator().manual_seed(2))
            for head, length in zip(lengths.cumsum(0) - lengths, lengths, strict=True)
        ]
    )
    straight = ragged_kmeans(x, lengths, 3, init="farthest")
    permuted = ragged_kmeans(x[order], lengths, 3, init="farthest")
    torch.testing.assert_close(permuted.inertia, straight.inertia)


def test_padded_rows_come_in_and_padded_centroids_go_out():
    x, lengths = problems(6, 20)
    mask = torch.arange(20) < lengths[:, None]
    padded = x.new_zeros(6, 20, x.shape[1])
    padded[mask] = x
    found = ragged_kmeans(padded[mask], mask.sum(dim=1), 4)
    assert torch.equal(found.labels, ragged_kmeans(x, lengths, 4).labels)
    centroids, real = found.padded()
    assert centroids.shape == (6, 4, x.shape[1])
    assert torch.equal(real.sum(dim=1), found.cluster_lengths)
    assert torch.equal(centroids[real], found.centroids)
    assert not centroids[~real].any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("init", ["k-means++", "farthest"])
def test_gpu_equals_cpu(init):
    x, lengths = problems()
    found = ragged_kmeans(x.cuda(), lengths, 4, init=init)
    assert found.centroids.is_cuda
    assert torch.equal(found.labels.cpu(), ragged_kmeans(x, lengths, 4, init=init).labels)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"x": torch.ones(6)}, r"x must have shape \(t, d\), got \(6,\)"),
        ({"x": torch.full((6, 2), math.nan)}, "x must be finite"),
        ({"lengths": torch.tensor([2, 3])}, "lengths must sum to the 6 rows of x, got 5"),
        ({"lengths": torch.tensor([7, -1])}, "lengths must be at least 0 everywhere, got -1"),
        ({"lengths": torch.tensor([2.0, 4.0])}, r"lengths must be integers of shape \(b,\)"),
        ({"lengths": torch.tensor(6)}, r"lengths must be integers of shape \(b,\)"),
        ({"n_clusters": 0}, "n_clusters must be an integer of at least 1, got 0"),
        ({"n_clusters": torch.tensor([1, 0])}, "n_clusters must be at least 1 everywhere, got 0"),
        ({"n_clusters": torch.tensor([1])}, r"n_clusters must be integers of shape \(2,\)"),
        ({"metric": "dot"}, "metric must be euclidean or cosine, got 'dot'"),
        ({"init": "first"}, "init must be k-means"),
        ({"init": torch.ones(3, 2)}, r"init must have shape \(4, 2\), got \(3, 2\)"),
        ({"init": torch.zeros(4, 2), "metric": "cosine"}, "init must have no zero row"),
        ({"n_init": 0}, "n_init"),
        ({"max_iter": 0}, "max_iter"),
        ({"tol": -1.0}, "tol must be at least 0"),
        ({"weights": torch.ones(5)}, r"weights must have shape \(6,\)"),
        ({"weights": -torch.ones(6)}, "weights must be finite and none negative"),
        ({"memory_budget": 0}, "memory_budget"),
    ],
)
def test_a_wrong_argument_is_named(arguments, named):
    valid = {"x": torch.rand(6, 2), "lengths": torch.tensor([2, 4]), "n_clusters": 2}
    with pytest.raises(ArgumentError, match=named):
        ragged_kmeans(**(valid | arguments))
