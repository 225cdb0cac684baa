import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from common.errors import ArgumentError
from common.neighbors import knn_graph


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
