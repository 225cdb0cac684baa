import pytest
import torch

from common.adjacency import (
    adjacency_power,
    cumulative_power,
    row_normalized_adjacency,
    sparse_transpose,
)
from common.errors import ArgumentError

PATH = torch.tensor([[0, 1], [1, 2]])


def random_edges(n: int = 40, e: int = 90, seed: int = 0) -> torch.Tensor:
    return torch.randint(n, (2, e), generator=torch.Generator().manual_seed(seed))


def test_path_graph_by_hand():  # SCGC card, check 1
    adjacency = row_normalized_adjacency(PATH, 3)
    by_hand = torch.tensor([[0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.0, 0.5, 0.5]])
    torch.testing.assert_close(adjacency.to_dense(), by_hand)
    torch.testing.assert_close(
        adjacency_power(adjacency, 2).to_dense()[0],
        torch.tensor([0.4167, 0.4167, 0.1667]),
        atol=5e-5,
        rtol=0,
    )
    torch.testing.assert_close(
        cumulative_power(adjacency, 2).to_dense()[1],
        torch.tensor([0.6111, 0.7778, 0.6111]),
        atol=5e-5,
        rtol=0,
    )


@pytest.mark.parametrize("order", [1, 2, 4])
def test_row_sums_and_dense_reference(order):
    adjacency = row_normalized_adjacency(random_edges(), 40)
    dense = torch.zeros(40, 40, dtype=torch.float64)
    for i, j in random_edges().T.tolist():
        dense[i, j] = dense[j, i] = 1
    for i in range(40):
        dense[i, i] = 1
    dense /= dense.sum(dim=1, keepdim=True)
    power, total = torch.eye(40, dtype=torch.float64), torch.zeros(40, 40, dtype=torch.float64)
    for _ in range(order):
        power = power @ dense
        total += power
    ours = adjacency_power(adjacency, order).to_dense()
    influence = cumulative_power(adjacency, order).to_dense()
    torch.testing.assert_close(ours.double(), power, atol=1e-6, rtol=0)
    torch.testing.assert_close(influence.double(), total, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.sum(dim=1), torch.ones(40))
    torch.testing.assert_close(influence.sum(dim=1), torch.full((40,), float(order)))


def test_direction_repetition_and_self_loops_do_not_count():
    plain = row_normalized_adjacency(PATH, 3).to_dense()
    noisy = torch.tensor([[1, 0, 1, 2, 2, 0], [0, 1, 2, 1, 2, 1]])
    torch.testing.assert_close(row_normalized_adjacency(noisy, 3).to_dense(), plain)


def test_isolated_node_keeps_itself():
    adjacency = row_normalized_adjacency(PATH, 4)
    assert adjacency.to_dense()[3].tolist() == [0, 0, 0, 1]
    no_edges = row_normalized_adjacency(torch.empty(2, 0, dtype=torch.long), 2)
    assert no_edges.to_dense().tolist() == [[1, 0], [0, 1]]


def test_transpose():
    adjacency = row_normalized_adjacency(random_edges(), 40)
    transposed = sparse_transpose(adjacency)
    assert transposed.layout == torch.sparse_csr
    torch.testing.assert_close(transposed.to_dense(), adjacency.to_dense().T)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: row_normalized_adjacency(torch.tensor([[0], [3]]), 3), "nodes 0 to 3, but the 3"),
        (lambda: row_normalized_adjacency(torch.tensor([[-1], [1]]), 3), "nodes -1 to 1"),
        (lambda: row_normalized_adjacency(torch.zeros(3, 2), 3), r"edge_index must be \(2, e\)"),
        (lambda: cumulative_power(row_normalized_adjacency(PATH, 3), 0), "order must be at least"),
        (lambda: adjacency_power(torch.eye(3), 2), "sparse CSR"),
    ],
)
def test_bad_arguments_name_themselves(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
