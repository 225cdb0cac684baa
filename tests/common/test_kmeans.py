import math
import os
import subprocess
import sys
import warnings
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans as ReferenceKMeans
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.errors import ArgumentError
from common.kmeans import KMeans, balanced_labels, choose_engine, sources
from common.kmeans.estimator import _cluster_sums
from common.kmeans.seeding import draw
from common.kmeans.sources import Ranks
from tests.common import kmeans_ranks
from tests.ranks import on_ranks

ENGINES = ["torch", *(["faiss"] if sys.platform != "darwin" else [])]


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return torch.from_numpy(load_digits().data).float() / 16


def blobs(n: int, d: int, k: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(k, d, generator=generator, dtype=dtype)
    own = torch.randint(k, (n,), generator=generator)
    return centres[own] + torch.randn(n, d, generator=generator, dtype=dtype)


def lloyd_by_loops(
    x: np.ndarray, centroids: np.ndarray, iterations: int, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Lloyd's iteration in float64, one row and one cluster at a time."""
    centroids = centroids.copy()

    def assign() -> tuple[np.ndarray, float]:
        labels, total = np.empty(len(x), dtype=int), 0.0
        for i, row in enumerate(x):
            distances = [float(((row - c) ** 2).sum()) for c in centroids]
            labels[i] = int(np.argmin(distances))
            total += weights[i] * min(distances)
        return labels, total

    for _ in range(iterations):
        labels, _ = assign()
        for j in range(len(centroids)):
            members = labels == j
            centroids[j] = np.average(x[members], axis=0, weights=weights[members])
    return centroids, *assign()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("weighted", [False, True])
def test_lloyd_equals_the_loops(digits, engine, weighted):
    x = digits[:400]
    weights = torch.linspace(0.1, 3, len(x)) if weighted else None
    plain = np.ones(len(x)) if weights is None else weights.double().numpy()
    start = x[::40]
    expected, labels, inertia = lloyd_by_loops(x.double().numpy(), start.double().numpy(), 6, plain)
    kmeans = KMeans(10, init=start, max_iter=6, tol=0, engine=engine).fit(x, weights)
    assert kmeans.engine_used == engine
    assert kmeans.n_iter == 6
    assert kmeans.labels.tolist() == labels.tolist()
    assert kmeans.inertia == pytest.approx(inertia, rel=1e-6)
    torch.testing.assert_close(kmeans.centroids, torch.from_numpy(expected).float())


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_objective_equals_scikit_learns_on_digits(digits, init):
    reference = ReferenceKMeans(10, n_init=20, random_state=0).fit(digits.numpy())
    kmeans = KMeans(10, n_init=20, init=init, seed=0).fit(digits)
    assert kmeans.inertia == pytest.approx(reference.inertia_, rel=5e-3)


@pytest.mark.skipif(len(ENGINES) == 1, reason="faiss and torch do not mix on macOS")
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_engines_agree_from_the_same_start(metric):
    x = blobs(4000, 24, 60)
    start = x[:60]
    ours, faiss = (
        KMeans(60, init=start, metric=metric, engine=engine).fit(x) for engine in ("torch", "faiss")
    )
    assert (ours.engine_used, faiss.engine_used) == ("torch", "faiss")
    assert faiss.inertia == pytest.approx(ours.inertia, rel=1e-3)
    assert faiss.n_iter < 300


def alone(n: int) -> SimpleNamespace:
    return SimpleNamespace(total=n, first=0, ranks=Ranks(False))


def test_rows_are_drawn_in_proportion_to_their_mass():
    mass = torch.tensor([0.4, 1.0, 0.0, 0.7])
    draws = torch.randint(2**31, (1, 100_000), generator=torch.Generator().manual_seed(0))
    share = draw(alone(4), mass[None], draws)[0].bincount(minlength=4) / 100_000
    torch.testing.assert_close(share, mass / mass.sum(), rtol=0, atol=0.006)
    assert share[2] == 0


def test_the_smallest_and_the_largest_draw_give_the_first_and_the_last_row():
    mass = torch.rand(2, 1000, generator=torch.Generator().manual_seed(0)) + 0.1
    draws = torch.tensor([[0, 2**31 - 1]]).expand(2, 2)
    assert draw(alone(1000), mass, draws).tolist() == [[0, 999], [0, 999]]


def test_greedy_seeding_beats_random_rows():
    x = blobs(2000, 8, 30)
    seeded, drawn = (
        np.mean([KMeans(30, init=init, max_iter=1, seed=s).fit(x).inertia for s in range(5)])
        for init in ("k-means++", "random")
    )
    assert seeded < 0.8 * drawn


def test_restarts_keep_the_best(digits):
    inertias = [KMeans(10, seed=seed, n_init=1).fit(digits).inertia for seed in range(6)]
    assert KMeans(10, seed=0, n_init=20).fit(digits).inertia <= min(inertias) * 1.001


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_memory_budget_changes_nothing(digits, init):
    small, large = (
        KMeans(10, init=init, n_init=4, seed=3, memory_budget=budget).fit(digits)
        for budget in (20_000, 2**28)
    )
    assert small.inertia == pytest.approx(large.inertia, rel=1e-5)
    assert (small.labels == large.labels).float().mean() > 0.999


def test_blocks_of_distances_stay_within_the_budget(monkeypatch):
    sizes, multiply = [], torch.addmm

    def measured(*args, **kwargs):
        product = multiply(*args, **kwargs)
        sizes.append(product.numel() * product.element_size())
        return product

    monkeypatch.setattr(torch, "addmm", measured)
    x = blobs(2000, 8, 50)
    KMeans(50, init=x[:50], memory_budget=40_000).fit(x)
    assert 0 < max(sizes) <= 40_000 < 2000 * 50 * 4


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_one_copy_of_the_rows_is_made(metric, dtype):
    class Allocations(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            parts = [part.untyped_storage() for part in tree_leaves(out) if torch.is_tensor(part)]
            large.update({s.data_ptr(): s for s in parts if s.nbytes() >= x.numel()})
            return out

    x = blobs(1000, 200, 4).to(dtype)
    large = {x.untyped_storage().data_ptr(): x.untyped_storage()}  # kept, so that none comes again
    with Allocations():
        kmeans = KMeans(4, metric=metric, seed=0, engine="torch", memory_budget=20_000).fit(x)
        fitted = len(large)
        kmeans.predict(x)
    predicted = len(large)  # a dict of storages would take pytest minutes to print
    assert (fitted, predicted) == (2, 3)


def test_deterministic_under_a_seed(digits):
    one, two, other = (KMeans(10, seed=seed).fit(digits) for seed in (0, 0, 1))
    assert torch.equal(one.labels, two.labels)
    assert torch.equal(one.centroids, two.centroids)
    assert not torch.equal(one.centroids, other.centroids)


def test_a_seed_leaves_the_global_generator_alone(digits):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    KMeans(5, seed=1).fit(digits)
    KMeans(5, init="random", seed=1).fit(digits)
    KMeans(5, init=digits[:5]).fit(digits)
    assert torch.equal(torch.rand(3), expected)


def test_without_a_seed_the_global_generator_decides(digits):
    centroids = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        centroids.append(KMeans(10).fit(digits).centroids)
    assert torch.equal(centroids[0], centroids[1])
    assert not torch.equal(centroids[0], centroids[2])


def test_predict_gives_the_labels_of_fit_and_of_new_rows(digits):
    kmeans = KMeans(10, seed=0).fit(digits[:1000])
    assert torch.equal(kmeans.predict(digits[:1000]), kmeans.labels)
    nearest = torch.cdist(digits[1000:].double(), kmeans.centroids.double()).argmin(dim=1)
    assert torch.equal(kmeans.predict(digits[1000:]), nearest)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(digits, dtype):
    kmeans = KMeans(10, init=digits[:10], tol=0).fit(digits.to(dtype))
    assert kmeans.centroids.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert kmeans.labels.dtype == torch.int64
    exact = KMeans(10, init=digits[:10].double(), tol=0).fit(digits.to(dtype).double())
    assert kmeans.inertia == pytest.approx(exact.inertia, rel=1e-5)


def test_half_precision_sums_do_not_saturate():
    x = torch.full((5000, 2), 100.0, dtype=torch.float16)
    x[2500:] = -100
    kmeans = KMeans(2, seed=0).fit(x)
    assert kmeans.centroids.abs().tolist() == [[100.0, 100.0], [100.0, 100.0]]


def test_sums_over_many_rows_do_not_round_off():
    n = 3_000_000
    x, weights = torch.ones(n, 1), torch.full((n,), 0.1)
    labels = (torch.arange(n) % 3 > 0).long()
    sums, mass = _cluster_sums(x, weights, labels[None], 2)
    for total in (sums[0, :, 0], mass[0]):
        torch.testing.assert_close(total.float(), torch.tensor([1e5, 2e5]), rtol=2e-6, atol=0)


def test_clusters_weigh_more_than_float32_can_count_to():
    n = 2**24 + 1000
    _, mass = _cluster_sums(torch.ones(n, 1), torch.ones(n), torch.ones(1, n).long(), 3)
    assert mass.tolist() == [[0, n, 0]]


def test_float64_centroids_answer_large_float32_rows():
    x = blobs(20_000, 100, 50)
    assert choose_engine(x, 50) == ENGINES[-1]
    kmeans = KMeans(50, init="random", max_iter=2, seed=0).fit(x.double())
    assert torch.equal(kmeans.predict(x), kmeans.labels)


def test_inputs_stay_untouched_and_autocast_and_gradients_stay_out(digits):
    x = digits.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kmeans = KMeans(10, init=digits[:10]).fit(x)
    assert torch.equal(x, digits)
    assert not kmeans.centroids.requires_grad
    assert kmeans.inertia == KMeans(10, init=digits[:10]).fit(digits).inertia


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_scale_and_offset_do_not_cost_precision(offset, scale):
    x = blobs(300, 4, 3, dtype=torch.float64)
    expected = KMeans(3, init=x[:3]).fit(x)
    shifted = ((x + offset) * scale).float()
    found = KMeans(3, init=shifted[:3]).fit(shifted)
    assert torch.equal(found.labels, expected.labels)
    assert found.inertia / scale**2 == pytest.approx(expected.inertia, rel=1e-3)


def test_the_largest_numbers_have_an_objective():
    x = torch.tensor([[1e308], [-1e308], [9e307]], dtype=torch.float64)
    kmeans = KMeans(2, seed=0).fit(x)
    assert kmeans.inertia == math.inf
    assert kmeans.labels[0] == kmeans.labels[2] != kmeans.labels[1]


def test_cosine_is_spherical(digits):
    kmeans = KMeans(10, metric="cosine", seed=0).fit(digits)
    torch.testing.assert_close(kmeans.centroids.norm(dim=1), torch.ones(10))
    unit = digits / digits.norm(dim=1, keepdim=True)
    similarity = unit @ kmeans.centroids.T
    assert kmeans.inertia == pytest.approx(float((1 - similarity.amax(dim=1)).sum()), rel=1e-4)
    means = torch.stack([unit[kmeans.labels == j].mean(dim=0) for j in range(10)])
    agreement = (means / means.norm(dim=1, keepdim=True) * kmeans.centroids).sum(dim=1)
    assert agreement.min() > 0.999
    stretched = digits * torch.linspace(0.1, 10, len(digits))[:, None]
    assert torch.equal(kmeans.predict(stretched), kmeans.labels)


def test_zero_rows_weigh_nothing_in_cosine():
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.0, 0.0]])
    kmeans = KMeans(2, metric="cosine", seed=0).fit(x)
    assert kmeans.labels[[0, 4]].tolist() == [0, 0]
    assert sorted(kmeans.centroids.tolist()) == [[0.0, 1.0], [1.0, 0.0]]
    assert kmeans.inertia == 0


@pytest.mark.parametrize("seed", range(5))
def test_zero_rows_get_label_0_in_any_clustering(seed):
    x = blobs(60, 3, 4, seed)
    x[::7] = 0
    kmeans = KMeans(4, metric="cosine", seed=seed).fit(x)
    assert not kmeans.labels[::7].any()
    assert torch.equal(kmeans.predict(x), kmeans.labels)
    assert len(kmeans.labels.unique()) == 4


def test_opposite_rows_keep_the_centroid_in_cosine():
    x = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    kmeans = KMeans(1, metric="cosine", init=torch.tensor([[3.0, 0.0]])).fit(x)
    assert kmeans.centroids.tolist() == [[1.0, 0.0]]
    assert kmeans.inertia == 2


def test_weights_equal_repeated_rows(digits):
    x = digits[:300]
    times = torch.arange(300) % 4
    start = x[1::30]
    weighted = KMeans(10, init=start).fit(x, times)
    repeated = KMeans(10, init=start).fit(x.repeat_interleave(times, dim=0))
    torch.testing.assert_close(weighted.centroids, repeated.centroids)
    assert weighted.inertia == pytest.approx(repeated.inertia, rel=1e-5)
    assert weighted.n_iter == repeated.n_iter


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_rows_without_weight_are_never_seeds(init):
    x = torch.cat([blobs(20, 2, 1), torch.full((20, 2), 1e6)])
    weights = torch.cat([torch.ones(20), torch.zeros(20)])
    kmeans = KMeans(5, init=init, n_init=5, seed=0).fit(x, weights)
    assert kmeans.centroids.abs().max() < 100


@pytest.mark.parametrize("init", ["k-means++", "random"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_one_repeated_point(init, metric):
    x = torch.tensor([[0.1, 0.7, 0.3]]).repeat(50, 1)
    kmeans = KMeans(4, init=init, metric=metric, n_init=3, seed=0).fit(x)
    assert kmeans.inertia == pytest.approx(0, abs=1e-6)
    assert kmeans.centroids.isfinite().all()
    assert len(kmeans.labels.unique()) == 1


def test_as_many_clusters_as_rows():
    x = blobs(40, 3, 1)
    kmeans = KMeans(40, seed=0).fit(x)
    assert sorted(kmeans.labels.tolist()) == list(range(40))
    assert kmeans.inertia == pytest.approx(0, abs=1e-10)


def test_one_cluster_is_the_mean():
    x = blobs(100, 3, 1)
    kmeans = KMeans(1, seed=0).fit(x)
    torch.testing.assert_close(kmeans.centroids[0], x.mean(dim=0))
    assert kmeans.inertia == pytest.approx(float((x - x.mean(dim=0)).square().sum()), rel=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_empty_clusters_restart_from_the_costliest_rows(engine):
    x = torch.tensor([[0.0], [1.0], [10.0], [11.0], [50.0], [51.0]])
    one_empty = torch.tensor([[0.5], [10.5], [1e4]])
    kmeans = KMeans(3, init=one_empty, engine=engine).fit(x)
    torch.testing.assert_close(kmeans.centroids, torch.tensor([[0.5], [10.5], [50.5]]))
    assert kmeans.labels.tolist() == [0, 0, 1, 1, 2, 2]
    two_empty = torch.tensor([[0.5], [1e4], [2e4]])
    kmeans = KMeans(3, init=two_empty, engine=engine, max_iter=1).fit(x)
    torch.testing.assert_close(kmeans.centroids, torch.tensor([[20.5], [51.0], [50.0]]))


def test_the_weighted_cost_decides_where_an_empty_cluster_restarts():
    x = torch.tensor([[0.0], [5.0], [-6.0]])
    weights = torch.tensor([100.0, 10.0, 1.0])
    start = torch.tensor([[0.0], [1e4]])
    kmeans = KMeans(2, init=start, max_iter=1).fit(x, weights)
    assert kmeans.centroids[1].tolist() == [5.0]


def test_import_leaves_faiss_out():
    script = "import sys, common.kmeans; sys.exit('faiss' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_auto_follows_the_rule(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    assert choose_engine(torch.empty(9298, 10), 10) == "torch"
    assert choose_engine(torch.empty(50_000, 64), 500) == "faiss"
    assert choose_engine(torch.empty(50_000, 64, dtype=torch.float64), 500) == "torch"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert choose_engine(torch.empty(50_000, 64), 500) == "torch"
    x = blobs(40_000, 50, 50)
    assert KMeans(50, init="random", max_iter=1, seed=0).fit(x).engine_used == "torch"
    monkeypatch.undo()
    assert KMeans(50, init="random", max_iter=1, seed=0).fit(x).engine_used == ENGINES[-1]


def test_no_warning_is_raised(digits):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        KMeans(10, seed=0, n_init=2).fit(digits)
        KMeans(10, seed=0, engine=ENGINES[-1]).fit(digits)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_devices_agree(digits, metric):
    cpu = KMeans(10, metric=metric, n_init=5, seed=0).fit(digits)
    cuda = KMeans(10, metric=metric, n_init=5, seed=0).fit(digits.cuda())
    again = KMeans(10, metric=metric, n_init=5, seed=0).fit(digits.cuda())
    assert cuda.labels.device.type == cuda.centroids.device.type == "cuda"
    assert cuda.inertia == pytest.approx(cpu.inertia, rel=1e-4)
    assert torch.equal(cuda.centroids, again.centroids)


problems = st.builds(
    lambda n, d, k, seed: (blobs(n, d, k, seed, torch.float64), k),
    n=st.integers(8, 60),
    d=st.integers(1, 5),
    k=st.integers(1, 8),
    seed=st.integers(0, 10_000),
)
metrics = st.sampled_from(["euclidean", "cosine"])
by_chance = settings(max_examples=40, deadline=None, derandomize=True)


@by_chance
@given(problems, metrics)
def test_the_objective_never_increases(problem, metric):
    x, k = problem
    inertias = [
        KMeans(k, metric=metric, init=x[:k], max_iter=steps, tol=0).fit(x).inertia
        for steps in range(1, 8)
    ]
    assert all(b <= a + 1e-9 * (1 + a) for a, b in pairwise(inertias))


@by_chance
@given(problems, st.sampled_from(["k-means++", "random"]))
def test_labels_are_the_nearest_centroids_and_no_cluster_is_empty(problem, init):
    x, k = problem
    kmeans = KMeans(k, init=init, seed=0).fit(x)
    distances = torch.cdist(x, kmeans.centroids).square()
    own = distances.gather(1, kmeans.labels[:, None])[:, 0]
    torch.testing.assert_close(own, distances.amin(dim=1), rtol=1e-9, atol=1e-9)
    assert kmeans.inertia == pytest.approx(float(own.sum()), rel=1e-9, abs=1e-9)
    assert len(kmeans.labels.unique()) == k


@by_chance
@given(problems, metrics, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(problem, metric, random):
    x, k = problem
    order = torch.tensor(random.sample(range(len(x)), len(x)))
    straight = KMeans(k, metric=metric, init=x[:k]).fit(x)
    permuted = KMeans(k, metric=metric, init=x[:k]).fit(x[order])
    assert torch.equal(permuted.labels, straight.labels[order])
    torch.testing.assert_close(permuted.centroids, straight.centroids)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n_clusters": 0}, ["n_clusters", "0"]),
        ({"n_clusters": 2.0}, ["n_clusters", "2.0"]),
        ({"n_clusters": True}, ["n_clusters", "True"]),
        ({"n_init": 0}, ["n_init", "0"]),
        ({"max_iter": 0}, ["max_iter"]),
        ({"tol": -1.0}, ["tol", "-1.0"]),
        ({"tol": float("nan")}, ["tol", "nan"]),
        ({"memory_budget": 0}, ["memory_budget"]),
        ({"metric": "manhattan"}, ["metric", "manhattan", "cosine"]),
        ({"engine": "gpu"}, ["engine", "gpu", "faiss"]),
        ({"init": "best"}, ["init", "best", "k-means++"]),
        ({"init": np.zeros((3, 2))}, ["init", "array", "tensor"]),
    ],
)
def test_wrong_arguments_name_themselves(arguments, words):
    with pytest.raises(ArgumentError) as error:
        KMeans(**{"n_clusters": 3, **arguments})
    assert all(word in str(error.value) for word in words)


X = torch.arange(12.0).view(6, 2)


def test_integers_of_any_type_are_taken():
    kmeans = KMeans(np.int64(3), n_init=np.int32(2), max_iter=torch.tensor(5), seed=0).fit(X)
    assert kmeans.centroids.shape == (3, 2)


@pytest.mark.parametrize(
    ("arguments", "x", "weights", "words"),
    [
        ({"n_clusters": 7}, X, None, ["n_clusters=7", "n=6"]),
        ({}, X[0], None, ["x", "(n, d)", "(2,)"]),
        ({}, X[:0], None, ["x", "(0, 2)"]),
        ({}, X.long(), None, ["x", "floating-point", "int64"]),
        ({}, X.numpy().astype(int), None, ["x", "floating-point", "int64"]),
        ({}, 3.0, None, ["x", "float"]),
        ({}, X.to_sparse(), None, ["x", "sparse"]),
        ({}, X / torch.zeros(1), None, ["x", "NaN"]),
        ({}, X.half() * 60_000, None, ["x", "infinity"]),
        ({}, X, torch.ones(5), ["weights", "(6,)", "(5,)"]),
        ({}, X, -torch.ones(6), ["weights", "negative"]),
        ({}, X, torch.zeros(6), ["weights", "zero"]),
        ({}, X, torch.full((6,), float("nan")), ["weights", "finite"]),
        ({"init": X[:2]}, X, None, ["init", "(3, 2)", "(2, 2)"]),
        ({"init": X[:3] / 0}, X, None, ["init", "NaN"]),
        ({"init": X[:3] + 3e38}, X, None, ["init", "2^60", "3e+38"]),
        ({"init": X[:3] + 1e30}, X * 1e-30, None, ["init", "2^60", "1e+30"]),
        ({"init": X[:3].double() + 1e300}, X, None, ["init", "2^60", "1e+300"]),
        ({"init": X[:3] * 0, "metric": "cosine"}, X, None, ["init", "zero row"]),
        ({"metric": "cosine"}, X * 0, None, ["x", "non-zero row"]),
        ({"engine": "faiss"}, X.double(), None, ["faiss", "float64"]),
    ],
)
def test_wrong_input_is_named(arguments, x, weights, words):
    with pytest.raises(ArgumentError) as error:
        KMeans(**{"n_clusters": 3, "seed": 0, **arguments}).fit(x, weights)
    assert all(word in str(error.value) for word in words)


def test_predict_refuses_what_it_cannot_answer():
    with pytest.raises(ArgumentError, match="call fit first"):
        KMeans(2).predict(X)
    with pytest.raises(ArgumentError, match=r"\(n, 2\), got \(6, 3\)"):
        KMeans(2, seed=0).fit(X).predict(torch.ones(6, 3))
    with pytest.raises(ArgumentError, match=r"x must be at most 2\^60 times .* 1e\+30"):
        KMeans(2, seed=0).fit(X * 1e-30).predict(X + 1e30)


def test_a_fit_that_fails_changes_nothing():
    kmeans = KMeans(3, seed=0).fit(X)
    before = kmeans.centroids.clone(), kmeans.labels.clone(), kmeans.inertia
    kmeans.init = X[:3] + 1e30
    with pytest.raises(ArgumentError, match="init"):
        kmeans.fit(X * 1e-3 + 7)
    assert torch.equal(kmeans.centroids, before[0])
    assert torch.equal(kmeans.predict(X), before[1])
    assert kmeans.inertia == before[2]


def test_two_ranks_find_what_one_process_finds(tmp_path):
    first, second = on_ranks(kmeans_ranks.on_each, tmp_path)
    for name, case in kmeans_ranks.CASES.items():
        expected = kmeans_ranks.fitted(slice(None), case, False)
        for found in (first[name], second[name]):
            torch.testing.assert_close(found["centroids"], expected["centroids"])
            assert found["inertia"] == pytest.approx(expected["inertia"], rel=1e-9)
            assert found["n_iter"] == expected["n_iter"]
        labels = torch.cat([first[name]["labels"], second[name]["labels"]])
        assert torch.equal(labels, expected["labels"])
        assert torch.equal(first[name]["centroids"], second[name]["centroids"])
    steps = kmeans_ranks.in_steps(slice(None), False)
    torch.testing.assert_close(first["steps"], steps)
    assert torch.equal(first["steps"], second["steps"])
    assert "another rank" in first["refused"]
    assert "NaN" in second["refused"]
    assert torch.equal(first["unseeded"], second["unseeded"])


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory, digits) -> np.memmap:
    path = tmp_path_factory.mktemp("rows") / "digits.npy"
    np.save(path, digits.numpy())
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize(
    "arguments",
    [
        {"n_init": 2},
        {"init": "random"},
        {"init": "nested"},
        {"metric": "cosine"},
        {"weighted": True},
        {"labelled": True},
    ],
)
def test_chunks_give_what_the_rows_in_memory_give(digits, on_disk, monkeypatch, arguments):
    weighted, labelled = arguments.get("weighted"), arguments.get("labelled")
    arguments = {k: v for k, v in arguments.items() if k not in ("weighted", "labelled")}
    weights = torch.linspace(0.1, 3, len(digits)) if weighted else None
    known = torch.where(torch.arange(len(digits)) % 9 == 0, 3, -1) if labelled else None
    kmeans = KMeans(10, seed=0, max_iter=20, engine="torch", **arguments)
    expected = kmeans.fit(digits, weights, known)
    labels, inertia = expected.labels, expected.inertia
    monkeypatch.setattr(sources, "CHUNK_BYTES", 100_000)
    in_pieces = [digits[:700].numpy(), digits[700:].half()]  # exact: sixteenths
    for chunks in on_disk, lambda: iter(digits.split(500)), in_pieces:
        found = kmeans.fit(chunks, weights, known)
        assert found.inertia == pytest.approx(inertia, rel=1e-5)
        assert (found.labels == labels).float().mean() > 0.999
        if known is None:
            assert torch.equal(found.predict(chunks), found.labels)


def test_one_chunk_at_a_time_is_read(digits):
    alive, most = 0, 0

    class Chunk(np.ndarray):
        def __del__(self):
            nonlocal alive
            alive -= self.base is None

    def chunks():
        nonlocal alive, most
        for part in digits.numpy().reshape(-1, 64)[:1700].reshape(17, 100, 64):
            chunk = Chunk(part.shape, dtype=part.dtype)
            chunk[:] = part
            alive += 1
            most = max(most, alive)
            yield chunk
            del chunk

    KMeans(10, seed=0, init="random", max_iter=3).fit(chunks)
    assert 0 < most <= 2


def test_arrays_in_memory_are_taken_as_tensors(digits):
    array = digits.numpy().copy()
    array.flags.writeable = False
    kmeans = KMeans(10, seed=0).fit(array)
    assert torch.equal(kmeans.labels, KMeans(10, seed=0).fit(digits).labels)
    assert torch.equal(kmeans.predict(array), kmeans.labels)


def test_a_device_is_chosen():
    kmeans = KMeans(3, seed=0, device="cpu").fit(X)
    assert kmeans.centroids.device == torch.device("cpu")
    with pytest.raises(RuntimeError, match="meta"):  # meta has no numbers: the device was heeded
        KMeans(3, seed=0, device="meta").fit(X)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (iter([X]), ["x", "more than once", "function"]),
        ((part for part in [X]), ["x", "generator"]),
        (lambda: [], ["x", "no chunk"]),
        ([X, X[:, :1]], ["x", "(n, 2)", "(6, 1)"]),
        ([X, X / 0], ["x", "NaN"]),
        ([[1.0, 2.0]], ["chunks of x", "list"]),
    ],
)
def test_chunks_that_cannot_be_used_are_named(given, words):
    with pytest.raises(ArgumentError) as error:
        KMeans(2, seed=0).fit(given)
    assert all(word in str(error.value) for word in words)


def test_chunks_that_change_between_passes_are_noticed():
    passes = iter([[X, X], [X], [X], [X]])
    with pytest.raises(ArgumentError, match=r"same rows in each pass, got 12 .* 6"):
        KMeans(2, seed=0).fit(lambda: next(passes))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_known_rows_keep_their_class(metric):
    x = blobs(300, 4, 5, dtype=torch.float64)
    known = torch.full((300,), -1)
    known[:40] = torch.arange(40) % 3  # labels that have nothing to do with the rows
    kmeans = KMeans(6, metric=metric, seed=0, tol=0).fit(x, known=known)
    assert torch.equal(kmeans.labels[:40], known[:40])
    unit = x / x.norm(dim=1, keepdim=True) if metric == "cosine" else x
    distances = torch.cdist(unit, kmeans.centroids)
    assert torch.equal(kmeans.labels[40:], distances.argmin(dim=1)[40:])
    means = torch.stack([unit[kmeans.labels == j].mean(dim=0) for j in range(6)])
    means = means / means.norm(dim=1, keepdim=True) if metric == "cosine" else means
    torch.testing.assert_close(means, kmeans.centroids)
    cost = (unit - kmeans.centroids[kmeans.labels]).square().sum()
    expected = cost / 2 if metric == "cosine" else cost
    assert kmeans.inertia == pytest.approx(float(expected))


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_known_classes_start_from_their_means_and_the_others_elsewhere(init):
    centres = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0], [20.0, 20.0]])
    x = centres.repeat_interleave(50, dim=0) + blobs(200, 2, 1) * 0.01
    known = torch.full((200,), -1)
    known[50:60], known[150:160] = 0, 2  # around (20, 0) and (20, 20)
    kmeans = KMeans(4, init=init, seed=0, n_init=4).fit(x, known=known)
    assert set(kmeans.labels[50:100].tolist()) == {0}
    assert set(kmeans.labels[150:].tolist()) == {2}
    assert {*kmeans.labels[:50].tolist(), *kmeans.labels[100:150].tolist()} == {1, 3}


def test_all_rows_known_are_class_means():
    known = torch.tensor([0, 1, 0, 1, 1, 0])
    kmeans = KMeans(2, seed=0).fit(X, known=known)
    assert torch.equal(kmeans.labels, known)
    expected = torch.stack([X[known == j].mean(dim=0) for j in range(2)])
    torch.testing.assert_close(kmeans.centroids, expected)
    with pytest.raises(ArgumentError, match=r"known must leave a row without label .* got 0"):
        KMeans(3, seed=0).fit(X, known=known)


@pytest.mark.parametrize(
    ("known", "words"),
    [
        (torch.zeros(5, dtype=torch.long), ["known", "(6,)", "(5,)"]),
        (torch.zeros(6), ["known", "integers", "float32"]),
        (torch.full((6,), 3), ["known", "0 to 2", "3"]),
        (torch.full((6,), -2), ["known", "-1", "-2"]),
    ],
)
def test_known_labels_that_cannot_be_are_named(known, words):
    with pytest.raises(ArgumentError) as error:
        KMeans(3, seed=0).fit(X, known=known)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_clusters_of_limited_size(metric):
    x = blobs(203, 3, 2, dtype=torch.float64)
    kmeans = KMeans(6, metric=metric, seed=0, max_cluster_size=34).fit(x)
    assert kmeans.labels.bincount(minlength=6).max() <= 34
    unit = x / x.norm(dim=1, keepdim=True) if metric == "cosine" else x
    means = torch.stack([unit[kmeans.labels == j].mean(dim=0) for j in range(6)])
    means = means / means.norm(dim=1, keepdim=True) if metric == "cosine" else means
    torch.testing.assert_close(means, kmeans.centroids, rtol=0, atol=0.05)
    assert torch.equal(kmeans.labels, balanced_labels(unit, kmeans.centroids, 34))
    free = KMeans(6, metric=metric, seed=0).fit(x)
    wide = KMeans(6, metric=metric, seed=0, max_cluster_size=203).fit(x)
    assert torch.equal(wide.labels, free.labels)


@pytest.mark.parametrize(
    ("arguments", "fit", "words"),
    [
        ({"max_cluster_size": 1}, {}, ["max_cluster_size", "2 for n=6 and k=3", "got 1"]),
        ({"max_cluster_size": 4}, {"weights": torch.ones(6)}, ["max_cluster_size", "weights"]),
        ({"max_cluster_size": 4}, {"known": torch.zeros(6).long()}, ["max_cluster_size", "known"]),
        ({"init": "nested"}, {"known": torch.zeros(6).long()}, ["known", "nested"]),
        ({"init": "superkmeans"}, {"weights": torch.ones(6)}, ["superkmeans", "weights"]),
        ({"engine": "triton"}, {}, ["triton", "CUDA"]),
    ],
)
def test_what_does_not_go_together_is_named(arguments, fit, words):
    with pytest.raises(ArgumentError) as error:
        KMeans(3, seed=0, **arguments).fit(X, **fit)
    assert all(word in str(error.value) for word in words)
    with pytest.raises(ArgumentError, match=r"max_cluster_size .* distributed"):
        KMeans(3, max_cluster_size=3, distributed=True)
    with pytest.raises(ArgumentError, match=r"max_cluster_size .* partial_fit"):
        KMeans(3, max_cluster_size=3).partial_fit(X)


def minibatches_by_loops(
    batches: list[np.ndarray], weights: list[np.ndarray], centroids: np.ndarray
) -> np.ndarray:
    """Sculley's mini-batch k-means, one row at a time, in float64."""
    centroids, counts = centroids.copy(), np.zeros(len(centroids))
    for batch, weight in zip(batches, weights, strict=True):
        nearest = [int(np.argmin(((row - centroids) ** 2).sum(axis=1))) for row in batch]
        for row, w, j in zip(batch, weight, nearest, strict=True):
            counts[j] += w
            centroids[j] += w / counts[j] * (row - centroids[j])
    return centroids


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_partial_fit_equals_the_loops(digits, dtype):
    x = digits[:600].to(dtype)
    weights = torch.linspace(0.5, 2, 600)
    start = x[::60]
    expected = minibatches_by_loops(
        [part.double().numpy() for part in x.split(150)],
        [part.double().numpy() for part in weights.split(150)],
        start.double().numpy(),
    )
    kmeans = KMeans(10, init=start)
    for batch, weight in zip(x.split(150), weights.split(150), strict=True):
        kmeans.partial_fit(batch, weight)
    assert kmeans.n_iter == 4
    assert kmeans.labels.shape == (150,)
    assert kmeans.centroids.dtype == (dtype if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(
        kmeans.centroids.double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-4
    )


def test_partial_fit_goes_on_where_fit_stopped(digits):
    kmeans = KMeans(10, seed=0, tol=0).fit(digits[:1000])
    before, counts = kmeans.centroids.clone(), kmeans.labels.bincount(minlength=10)
    batch = digits[1000:1200]
    nearest = kmeans.predict(batch)
    kmeans.partial_fit(batch)
    for j in range(10):
        rows = batch[nearest == j]
        expected = (before[j] * counts[j] + rows.sum(dim=0)) / (counts[j] + len(rows))
        torch.testing.assert_close(kmeans.centroids[j], expected)


def test_minibatches_come_near_to_all_rows(digits):
    full = KMeans(10, seed=0).fit(digits)
    kmeans = KMeans(10, seed=0)
    for epoch in range(3):
        order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(epoch))
        for batch in digits[order].split(256):
            kmeans.partial_fit(batch)
    labels = kmeans.predict(digits)
    inertia = float((digits - kmeans.centroids[labels]).square().sum())
    assert inertia < 1.1 * full.inertia


def test_a_step_that_fails_changes_nothing():
    kmeans = KMeans(3, seed=0).partial_fit(X)
    before = kmeans.centroids.clone(), kmeans.n_iter
    with pytest.raises(ArgumentError, match="NaN"):
        kmeans.partial_fit(X / 0)
    with pytest.raises(ArgumentError, match=r"\(n, 2\)"):
        kmeans.partial_fit(X[:, :1])
    with pytest.raises(ArgumentError, match=r"2\^60"):
        kmeans.partial_fit(X + 1e30)
    assert torch.equal(kmeans.centroids, before[0])
    assert kmeans.n_iter == before[1]
    with pytest.raises(ArgumentError, match="n_clusters=7 for n=6"):
        KMeans(7).partial_fit(X)


@pytest.mark.parametrize("init", ["nested", "superkmeans"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_start_from_samples_is_as_good(init, metric):
    if init == "superkmeans":
        pytest.importorskip("superkmeans")
    x = blobs(8000, 32, 60)
    full = KMeans(20, metric=metric, seed=0).fit(x)
    kmeans = KMeans(20, init=init, metric=metric, seed=0).fit(x)
    again = KMeans(20, init=init, metric=metric, seed=0).fit(x)
    assert kmeans.inertia < 1.05 * full.inertia
    assert torch.equal(kmeans.labels, again.labels)


TRITON = """
import torch
from common.kmeans import KMeans

x = torch.randn(200, 37, generator=torch.Generator().manual_seed(0))  # no multiple of any block
for arguments in {"init": x[:70]}, {"init": "random", "n_init": 2, "seed": 0}:
    expected, found = (
        KMeans(70, engine=engine, max_iter=1, **arguments).fit(x) for engine in ("torch", "triton")
    )
    assert found.engine_used == "triton"
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.centroids, expected.centroids)
    assert abs(found.inertia / expected.inertia - 1) < 1e-6
"""


def test_the_triton_kernel_finds_what_torch_finds():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}  # read when triton is imported
    subprocess.run([sys.executable, "-c", TRITON], env=environment, check=True)


@by_chance
@given(problems, st.booleans())
def test_limits_and_known_labels_always_hold(problem, limited):
    x, k = problem
    n = len(x)
    known = torch.where(torch.arange(n) % 4 == 0, torch.arange(n) % k, -1)
    size = -(-n // k)
    inertias = []
    for steps in range(1, 5):
        kmeans = KMeans(k, init=x[:k], max_iter=steps, tol=0)
        if limited:
            kmeans.max_cluster_size = size
            assert kmeans.fit(x).labels.bincount(minlength=k).max() <= size
        else:
            assert torch.equal(kmeans.fit(x, known=known).labels[known >= 0], known[known >= 0])
        inertias.append(kmeans.inertia)
    assert all(b <= a * (1 + 1e-9) + 1e-12 for a, b in pairwise(inertias))
