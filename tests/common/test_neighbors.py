import math
import sys

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from common.errors import ArgumentError
from common.neighbors import (
    edges_to_sparse,
    knn_graph,
    mutual_knn_graph,
    nearest_neighbors,
    threshold_graph,
)


def slow_neighbors(x, k, metric):
    """The definition, pair by pair in float64."""
    points = x.double().tolist()

    def score(i, j):
        dot = sum(a * b for a, b in zip(points[i], points[j], strict=True))
        if metric == "dot":
            return -dot
        if metric == "cosine":
            norms = math.hypot(*points[i]) * math.hypot(*points[j])
            return -dot / norms if norms else 0.0
        return sum((a - b) ** 2 for a, b in zip(points[i], points[j], strict=True))

    nodes = range(len(points))
    return [sorted((j for j in nodes if j != i), key=lambda j: (score(i, j), j))[:k] for i in nodes]


def as_lists(edge_index, k):
    n = edge_index.shape[1] // k
    assert edge_index[0].tolist() == [i for i in range(n) for _ in range(k)]
    return edge_index[1].view(n, k).tolist()


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
@pytest.mark.parametrize("block_size", [None, 1, 7, 60])
def test_agrees_with_the_definition(metric, block_size):
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    found = knn_graph(x, 4, metric=metric, block_size=block_size)
    assert as_lists(found, 4) == slow_neighbors(x, 4, metric)


@pytest.mark.parametrize("metric", ["euclidean", "dot"])
@pytest.mark.parametrize("block_size", [None, 3])
def test_ties_go_to_the_lower_index(metric, block_size):
    x = torch.randint(0, 3, (50, 3), generator=torch.Generator().manual_seed(1)).float()
    found = knn_graph(x, 6, metric=metric, block_size=block_size)
    assert as_lists(found, 6) == slow_neighbors(x, 6, metric)


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
def test_one_repeated_point(metric):
    found = knn_graph(torch.ones(5, 2), 2, metric=metric)
    assert as_lists(found, 2) == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]]


def test_a_zero_row_has_cosine_zero_with_every_row():
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 1.0]])
    assert as_lists(knn_graph(x, 1, metric="cosine"), 1) == [[1], [3], [0], [1]]


def test_all_neighbors_may_be_asked_for():
    assert as_lists(knn_graph(torch.tensor([[0.0], [5.0], [1.0]]), 2), 2) == [
        [2, 1],
        [2, 0],
        [0, 1],
    ]


def test_far_from_the_origin_float32_input_keeps_its_neighbors():
    x = 1e4 + torch.arange(20.0)[:, None] ** 1.5
    assert as_lists(knn_graph(x, 3), 3) == slow_neighbors(x, 3, "euclidean")


def test_far_from_the_origin_float64_input_keeps_its_neighbors():
    near = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    far = near + torch.tensor([1e8, -1e8, 0.0], dtype=torch.float64)
    assert as_lists(knn_graph(far, 3), 3) == slow_neighbors(far, 3, "euclidean")


@pytest.mark.parametrize("scale", [1e-200, 1e-14, 1e200])
def test_cosine_does_not_depend_on_the_scale_of_a_row(scale):
    x = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    scales = torch.ones(40, 1, dtype=torch.float64)
    scales[::2] = scale
    assert torch.equal(knn_graph(x * scales, 3, metric="cosine"), knn_graph(x, 3, metric="cosine"))


def test_numpy_and_sparse_input_give_the_graph_of_the_same_numbers():
    x = torch.randint(0, 4, (30, 5), generator=torch.Generator().manual_seed(6)).float()
    expected = knn_graph(x, 3)
    for same in (x.numpy(), sp.csr_array(x.numpy()), sp.csr_matrix(x.numpy()), x.to_sparse()):
        assert torch.equal(knn_graph(same, 3), expected)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_sparse_csr_tensors_are_taken():
    x = torch.eye(6, 4)
    assert torch.equal(knn_graph(x.to_sparse_csr(), 2), knn_graph(x, 2))


def test_integer_and_half_input_give_the_graph_of_the_same_numbers():
    x = torch.randint(0, 9, (30, 4), generator=torch.Generator().manual_seed(2))
    expected = knn_graph(x.double(), 3)
    assert torch.equal(knn_graph(x, 3), expected)
    assert torch.equal(knn_graph(x.half(), 3), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_equals_cpu():
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(3))
    found = knn_graph(x.cuda(), 5)
    assert found.is_cuda
    assert torch.equal(found.cpu(), knn_graph(x, 5))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"x": torch.ones(3)}, "x must be"),
        ({"x": torch.ones(1, 3)}, "x must be .* n of at least 2"),
        ({"x": torch.ones(4, 2, dtype=torch.complex64)}, "x must be real"),
        ({"x": np.array([["a"], ["b"]])}, "x must be an array of numbers"),
        ({"n_neighbors": 0}, "n_neighbors must be an integer from 1 to 3, got 0"),
        ({"n_neighbors": 4}, "n_neighbors must be an integer from 1 to 3, got 4"),
        ({"n_neighbors": 2.5}, "n_neighbors must be an integer"),
        ({"n_neighbors": True}, "n_neighbors must be an integer"),
        ({"metric": "heat"}, "metric"),
        ({"block_size": 0}, "block_size"),
        ({"block_size": 1.5}, "block_size"),
        ({"x": torch.tensor([[0.0], [torch.nan], [1.0], [2.0]])}, "x has values"),
        ({"x": torch.tensor([[0.0], [torch.inf], [1.0], [2.0]])}, "x has values"),
        ({"x": torch.tensor([[0.0], [1e200], [1.0]], dtype=torch.float64)}, "x has values"),
    ],
)
def test_a_wrong_argument_is_named(arguments, named):
    with pytest.raises(ArgumentError, match=named):
        knn_graph(**({"x": torch.rand(4, 2), "n_neighbors": 1} | arguments))


METRICS = pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
ENGINES = pytest.mark.parametrize(
    "engine", ["torch", *(["faiss"] if sys.platform != "darwin" else [])]
)


def rows(n: int, d: int = 5, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def scores_by_pairs(queries, keys, metric):
    """All distances or similarities in float64, ``(m, n)``."""
    queries, keys = queries.double(), keys.double()
    if metric == "euclidean":
        return (queries[:, None] - keys).norm(dim=2)
    products = (queries[:, None] * keys).sum(dim=2)
    return (
        products if metric == "dot" else products / queries.norm(dim=1)[:, None] / keys.norm(dim=1)
    )


@METRICS
@ENGINES
@pytest.mark.parametrize("memory_budget", [None, 1, 2000])
def test_the_nearest_keys_are_the_best_of_all_pairs(metric, engine, memory_budget):
    queries, keys = rows(30), rows(70, seed=1)
    options = {"metric": metric, "engine": engine, "memory_budget": memory_budget}
    values, indices = nearest_neighbors(queries, keys, 6, **options)
    assert values.dtype == torch.float32
    scores = scores_by_pairs(queries, keys, metric)
    best = scores.topk(6, dim=1, largest=metric != "euclidean")
    assert torch.equal(indices, best.indices)
    torch.testing.assert_close(values.double(), best.values, rtol=1e-5, atol=1e-6)


@METRICS
@ENGINES
def test_without_itself_a_row_has_the_neighbors_of_the_graph(metric, engine):
    x = rows(60)
    _, indices = nearest_neighbors(x, x, 4, metric=metric, engine=engine, exclude_self=True)
    graph = knn_graph(x, 4, metric=metric, engine=engine)
    assert torch.equal(indices.flatten(), graph[1])
    assert torch.equal(graph, knn_graph(x, 4, metric=metric))


@ENGINES
def test_equal_rows_have_distance_zero_and_are_not_their_own_neighbors(engine):
    x = (rows(6) + 100).repeat(4, 1)
    values, indices = nearest_neighbors(x, x, 3, exclude_self=True, engine=engine)
    assert not values.any()
    assert torch.equal(indices % 6, torch.arange(24)[:, None].expand(-1, 3) % 6)
    assert not (indices == torch.arange(24)[:, None]).any()
    assert (indices.diff(dim=1) > 0).all()


def test_precision_of_the_rows_is_that_of_the_values():
    x = rows(20, dtype=torch.float64)
    values, _ = nearest_neighbors(x, x, 2)
    assert values.dtype == torch.float64
    halves, kept = nearest_neighbors(x.half(), x.half(), 2)
    assert halves.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values, indices = nearest_neighbors(x.half(), x.half(), 2)
    assert torch.equal(values, halves)
    assert torch.equal(indices, kept)
    assert not nearest_neighbors(x.requires_grad_(), x, 2)[0].requires_grad


@METRICS
@pytest.mark.parametrize("block_size", [None, 7])
def test_the_mutual_graph_keeps_the_edges_that_have_a_reverse(metric, block_size):
    x = rows(50)
    neighbors = slow_neighbors(x, 5, metric)
    found = mutual_knn_graph(x, 5, metric=metric, block_size=block_size).to_sparse_coo().coalesce()
    expected = [[i, j] for i in range(50) for j in sorted(neighbors[i]) if i in neighbors[j]]
    assert found.indices().T.tolist() == expected
    scores = scores_by_pairs(x, x, metric)[tuple(found.indices())]
    torch.testing.assert_close(found.values().double(), scores, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.to_dense(), found.to_dense().T)


@METRICS
@pytest.mark.parametrize("block_size", [None, 7])
def test_the_threshold_graph_keeps_the_pairs_that_are_near_enough(metric, block_size):
    x = rows(50)
    threshold = 1.5 if metric == "euclidean" else 0.4
    found = threshold_graph(x, threshold, metric=metric, block_size=block_size)
    found = found.to_sparse_coo().coalesce()
    scores = scores_by_pairs(x, x, metric)
    near = scores <= threshold if metric == "euclidean" else scores >= threshold
    near.fill_diagonal_(False)
    assert 0 < int(near.sum()) < near.numel() // 2
    assert torch.equal(found.indices(), near.nonzero().T)
    torch.testing.assert_close(found.values().double(), scores[near], rtol=1e-5, atol=1e-6)
    assert torch.equal(found.to_dense(), found.to_dense().T)


def test_equality_is_near_enough_and_equal_rows_are_stored():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    assert threshold_graph(x, 0.0).to_sparse_coo().indices().tolist() == [[0, 2], [2, 0]]
    assert len(threshold_graph(x, 5.0).values()) == 6
    assert len(threshold_graph(x, 4.99).values()) == 2
    assert len(threshold_graph(x, -1.0).values()) == 0
    assert len(threshold_graph(x, -torch.inf, metric="cosine").values()) == 6


def test_edges_come_in_any_order():
    edges = torch.tensor([[2, 0, 0], [1, 2, 0]])
    values = torch.tensor([5.0, 3.0, 4.0])
    matrix = edges_to_sparse(edges, 3, values)
    assert matrix.layout == torch.sparse_csr
    assert matrix.to_dense().tolist() == [[4.0, 0.0, 3.0], [0.0, 0.0, 0.0], [0.0, 5.0, 0.0]]
    assert matrix.col_indices().tolist() == [0, 2, 1]
    assert edges_to_sparse(edges[:, :0], 2).to_dense().tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda x: nearest_neighbors(x, x, 5), "n_neighbors must be an integer from 1 to 4, got 5"),
        (lambda x: nearest_neighbors(x, x, 4, exclude_self=True), "n_neighbors .* from 1 to 3"),
        (lambda x: nearest_neighbors(x[:2], x, 1, exclude_self=True), "exclude_self .* 2 and 4"),
        (lambda x: nearest_neighbors(x[:, :1], x, 1), r"same width, got \(4, 1\) and \(4, 2\)"),
        (lambda x: nearest_neighbors(x[0], x, 1), "queries must be a dense real tensor"),
        (lambda x: nearest_neighbors(x, x.to_sparse(), 1), "keys must be a dense real tensor"),
        (lambda x: nearest_neighbors(x / 0, x, 1), "queries has values that are not finite"),
        (lambda x: nearest_neighbors(x, x / 0, 1), "has values that are not finite"),
        (lambda x: nearest_neighbors(x, x, 1, metric="heat"), "metric"),
        (lambda x: nearest_neighbors(x, x, 1, engine="gpu"), "engine"),
        (lambda x: nearest_neighbors(x.double(), x, 1, engine="faiss"), "engine 'faiss' takes"),
        (lambda x: nearest_neighbors(x, x, 1, memory_budget=0), "memory_budget"),
        (lambda x: knn_graph(x, 1, engine="gpu"), "engine"),
        (lambda x: mutual_knn_graph(x, 4), "n_neighbors must be an integer from 1 to 3, got 4"),
        (lambda x: mutual_knn_graph(x, 1, metric="heat"), "metric"),
        (lambda x: threshold_graph(x, math.nan), "threshold must be a number, got nan"),
        (lambda x: threshold_graph(x[0], 1.0), "x must be"),
        (lambda x: threshold_graph(x / 0, 1.0), "x has values"),
        (lambda x: threshold_graph(x, 1.0, block_size=0), "block_size"),
        (lambda x: edges_to_sparse(x, 4), r"edge_index must be integers of shape \(2, e\)"),
        (lambda x: edges_to_sparse(torch.tensor([[0], [4]]), 4), "less than n_nodes=4 .* got 4"),
        (lambda x: edges_to_sparse(torch.tensor([[0], [-1]]), 4), "at least 0 everywhere, got -1"),
        (lambda x: edges_to_sparse(torch.tensor([[0, 0], [1, 1]]), 4), "no pair of nodes twice"),
        (lambda x: edges_to_sparse(torch.tensor([[0], [1]]), 4, x), "values must be one value for"),
    ],
)
def test_the_argument_that_is_wrong_is_named(call, named):
    with pytest.raises(ArgumentError, match=named):
        call(torch.rand(4, 2, generator=torch.Generator().manual_seed(0)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_nearest_keys_on_a_gpu_equal_those_on_the_cpu():
    queries, keys = rows(50), rows(300, seed=1)
    values, indices = nearest_neighbors(queries.cuda(), keys.cuda(), 5)
    expected = nearest_neighbors(queries, keys, 5)
    assert torch.equal(indices.cpu(), expected[1])
    torch.testing.assert_close(values.cpu(), expected[0])
