"""The objectives against the papers' checks and against slow references in loops, float64."""

import math

import pytest
import torch

from common.adjacency import adjacency_power, cumulative_power, row_normalized_adjacency
from common.errors import ArgumentError
from common.losses import (
    BlockContrast,
    NeighborContrast,
    block_contrast,
    influence_augmented_contrast,
    neighbor_contrast,
    self_training_loss,
    student_t_log_assignment,
    target_distribution,
)
from tests.common.tensors import largest_tensor

PATH = row_normalized_adjacency(torch.tensor([[0, 1], [1, 2]]), 3)
Z3 = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])


@pytest.fixture
def graph():
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(60, (2, 150), generator=generator)
    adjacency = row_normalized_adjacency(edges, 60)
    z = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    return adjacency, z


def cosine(a, b):
    norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms


def slow_neighbor_contrast(z, gamma, tau):
    z, gamma, n = z.tolist(), gamma.tolist(), len(z)
    total = 0.0
    for i in range(n):
        above = below = 0.0
        for j in range(n):
            e = math.exp(tau * (0.0 if i == j else cosine(z[i], z[j])))
            above += gamma[i][j] * e
            below += e
        total -= math.log(above / below + 1e-8)
    return total / n


def slow_block_contrast(z, gamma, assignment, k, tau):
    z, gamma, assignment = z.tolist(), gamma.tolist(), assignment.tolist()
    n, d = len(z), len(z[0])
    positive = 0.0
    for i in range(n):
        s = 0.0
        for j in range(n):
            if gamma[i][j]:
                s += gamma[i][j] * math.exp(tau * (0.0 if i == j else cosine(z[i], z[j])))
        positive += math.log(s + 1e-10) / n
    sums = {}
    for i in range(n):
        c = sums.setdefault(assignment[i], [0.0] * d)
        for a in range(d):
            c[a] += z[i][a]
    negative = 0.0
    for a in sums:
        s = sum(math.exp(tau * (0.0 if a == b else cosine(sums[a], sums[b]))) for b in sums)
        negative += math.log(s + 1e-10) / len(sums)
    return negative - positive


class TestNeighborContrast:
    @pytest.mark.parametrize(
        ("order", "tau", "value"),
        [(1, 1.0, 1.042852), (1, 0.25, 1.084501), (2, 1.0, 0.373067), (2, 0.25, 0.397237)],
    )
    def test_values_of_the_card(self, order, tau, value):  # check 2
        loss = influence_augmented_contrast(Z3, PATH, order=order, inverse_temperature=tau)
        assert loss.item() == pytest.approx(value, abs=1e-6)

    @pytest.mark.parametrize("order", [1, 3])
    def test_zero_inverse_temperature(self, graph, order):  # check 3
        adjacency, z = graph
        cumulative = influence_augmented_contrast(z, adjacency, order=order, inverse_temperature=0)
        power = neighbor_contrast(z, adjacency_power(adjacency, order), inverse_temperature=0)
        assert cumulative.item() == pytest.approx(math.log(60) - math.log(order), abs=1e-6)
        assert power.item() == pytest.approx(math.log(60), abs=1e-6)

    def test_scale_invariance(self, graph):  # check 4
        adjacency, z = graph
        z = z.requires_grad_()
        loss = neighbor_contrast(z, adjacency)
        (grad,) = torch.autograd.grad(loss, z)
        scaled = z.detach() * torch.rand(60, 1, dtype=torch.float64).add(0.1)
        assert neighbor_contrast(scaled, adjacency).item() == pytest.approx(loss.item(), rel=1e-12)
        assert (grad * z).sum(dim=1).abs().max() < 1e-15

    @pytest.mark.parametrize("tau", [0.25, 2.25, -1.0])
    def test_against_loops(self, graph, tau):
        adjacency, z = graph
        gamma = cumulative_power(adjacency, 2)
        slow = slow_neighbor_contrast(z, gamma.to_dense().double(), tau)
        ours = neighbor_contrast(z, gamma, inverse_temperature=tau)
        assert ours.item() == pytest.approx(slow, rel=1e-12)

    @pytest.mark.parametrize("block_entries", [1, 61, 500, 10**6])
    def test_block_size_changes_neither_value_nor_gradient(self, graph, block_entries):
        adjacency, z = graph
        z = z.requires_grad_()
        unit = torch.nn.functional.normalize(z, dim=1)
        similarity = (unit @ unit.T).fill_diagonal_(0)
        e = (1.7 * similarity).exp()
        dense = -((adjacency.to_dense() * e).sum(1) / e.sum(1) + 1e-8).log().mean()
        ours = neighbor_contrast(z, adjacency, inverse_temperature=1.7, block_entries=block_entries)
        torch.testing.assert_close(ours, dense, rtol=1e-13, atol=0)
        torch.testing.assert_close(
            torch.autograd.grad(ours, z), torch.autograd.grad(dense, z), rtol=1e-10, atol=1e-15
        )

    def test_float32_gradient_is_exact_to_rounding(self, graph):
        adjacency, z = graph
        gradients = []
        for dtype in (torch.float64, torch.float32):
            leaf = z.to(dtype).requires_grad_()
            gradients.append(torch.autograd.grad(neighbor_contrast(leaf, adjacency), leaf)[0])
        torch.testing.assert_close(gradients[1].double(), gradients[0], rtol=1e-4, atol=1e-8)

    def test_gradcheck_with_asymmetric_weights(self, graph):
        _, z = graph
        weights = torch.rand(8, 8, dtype=torch.float64).mul(torch.rand(8, 8) > 0.5)
        weights = weights.fill_diagonal_(0.3).to_sparse_csr()
        z = z[:8].clone().requires_grad_()
        assert torch.autograd.gradcheck(
            lambda z: neighbor_contrast(z, weights, block_entries=20), (z,)
        )

    @pytest.mark.parametrize("tau", [60.0, -60.0])
    def test_sharpest_temperature_in_float32(self, graph, tau):
        adjacency, z = graph
        unit = torch.nn.functional.normalize(z, dim=1)
        e = (tau * (unit @ unit.T).fill_diagonal_(0)).exp()
        dense = -((adjacency.to_dense() * e).sum(1) / e.sum(1) + 1e-8).log().mean()
        z = z.float().requires_grad_()
        ours = neighbor_contrast(z, adjacency, inverse_temperature=tau)
        assert ours.item() == pytest.approx(dense.item(), rel=1e-4)
        (grad,) = torch.autograd.grad(ours, z)
        assert grad.isfinite().all()

    def test_zero_row_has_gradient_zero(self, graph):
        adjacency, z = graph
        z = z.clone()
        z[5] = 0
        z.requires_grad_()
        (grad,) = torch.autograd.grad(neighbor_contrast(z, adjacency), z)
        assert grad[5].tolist() == [0] * 5
        assert grad[:5].abs().sum() > 0

    def test_dense_weights_and_module_agree(self, graph):
        adjacency, z = graph
        value = neighbor_contrast(z, adjacency)
        torch.testing.assert_close(neighbor_contrast(z, adjacency.to_dense()), value)
        torch.testing.assert_close(NeighborContrast(adjacency)(z), value)


class TestBlockContrast:
    ASSIGNMENT = torch.tensor([0, 0, 1])

    @pytest.mark.parametrize(("tau", "value"), [(1.0, 0.335498), (0.5, 0.534249)])
    def test_values_of_the_card(self, tau, value):  # check 1
        loss = block_contrast(Z3, PATH, self.ASSIGNMENT, 2, inverse_temperature=tau)
        assert loss.item() == pytest.approx(value, abs=1e-6)

    def test_sparse_and_dense_positives_agree(self, graph):  # check 2
        adjacency, z = graph
        assignment = torch.arange(60) % 4
        z = z.requires_grad_()
        unit = torch.nn.functional.normalize(z, dim=1)
        e = (0.5 * (unit @ unit.T).fill_diagonal_(0)).exp()
        positive = (adjacency.to_dense() * e).sum(dim=1)
        sums = torch.nn.functional.one_hot(assignment, 4).double().T @ z
        meta = torch.nn.functional.normalize(sums, dim=1)
        negative = (0.5 * (meta @ meta.T).fill_diagonal_(0)).exp().sum(dim=1)
        dense = (negative + 1e-10).log().mean() - (positive + 1e-10).log().mean()
        ours = block_contrast(z, adjacency, assignment, 4, inverse_temperature=0.5)
        torch.testing.assert_close(ours, dense, rtol=1e-12, atol=0)
        torch.testing.assert_close(
            torch.autograd.grad(ours, z), torch.autograd.grad(dense, z), rtol=1e-9, atol=1e-14
        )

    def test_against_loops(self, graph):
        adjacency, z = graph
        gamma = cumulative_power(adjacency, 3)
        assignment = torch.randint(5, (60,), generator=torch.Generator().manual_seed(1))
        slow = slow_block_contrast(z, gamma.to_dense().double(), assignment, 5, 1.5)
        ours = block_contrast(z, gamma, assignment, 5, inverse_temperature=1.5)
        assert ours.item() == pytest.approx(slow, rel=1e-10)

    @pytest.mark.parametrize("order", [1, 3])
    def test_zero_inverse_temperature(self, graph, order):  # check 3
        adjacency, z = graph
        gamma = cumulative_power(adjacency, order)
        loss = block_contrast(z, gamma, torch.arange(60) % 4, 4, inverse_temperature=0)
        assert loss.item() == pytest.approx(math.log(4) - math.log(order), abs=1e-6)

    def test_only_the_common_scale_is_free(self, graph):  # check 4
        adjacency, z = graph
        assignment = torch.arange(60) % 4
        value = block_contrast(z, adjacency, assignment, 4).item()
        assert block_contrast(7 * z, adjacency, assignment, 4).item() == pytest.approx(value)
        stretched = z * torch.linspace(0.1, 5, 60, dtype=torch.float64)[:, None]
        other = block_contrast(stretched, adjacency, assignment, 4).item()
        assert abs(other - value) > 1e-3

    def test_concentrated_clusters_give_exact_pair_similarity(self):  # check 5
        centres = torch.randn(3, 4, dtype=torch.float64)
        assignment = torch.arange(12) % 3
        z = centres[assignment]
        no_positives = torch.eye(12).to_sparse_csr()  # pos_i = 1, its log is 0
        loss = block_contrast(z, no_positives, assignment, 3, inverse_temperature=0.7)
        u = torch.tensor(
            [[0.0 if a == b else cosine(x, y) for b, y in enumerate(centres.tolist())]
             for a, x in enumerate(centres.tolist())]
        )  # fmt: skip
        assert loss.item() == pytest.approx(
            (0.7 * u).exp().sum(dim=1).log().mean().item(), abs=1e-6
        )

    def test_two_clusters_move_apart(self):  # check 6
        tau, assignment = 0.8, torch.tensor([0, 1])
        no_positives = torch.eye(2).to_sparse_csr()
        z = torch.tensor([[1.0, 0.2], [0.9, 0.6]], dtype=torch.float64, requires_grad=True)
        u = torch.cosine_similarity(z[0], z[1], dim=0)
        (du,) = torch.autograd.grad(u, z)
        loss = block_contrast(z, no_positives, assignment, 2, inverse_temperature=tau)
        (grad,) = torch.autograd.grad(loss, z)
        slope = tau * math.exp(tau * u.item()) / (1 + math.exp(tau * u.item()))
        torch.testing.assert_close(grad, slope * du)
        stepped = (z - 0.1 * grad).detach()
        assert torch.cosine_similarity(stepped[0], stepped[1], dim=0) < u

    @pytest.mark.parametrize("renamed", [[0, 2, 3], [0, 1, 3], [1, 2, 3]])
    def test_empty_clusters_are_left_out(self, graph, renamed):  # check 7
        adjacency, z = graph
        z = z.requires_grad_()
        compact = torch.arange(60) % 3
        expected = block_contrast(z, adjacency, compact, 3)
        actual = block_contrast(z, adjacency, torch.tensor(renamed)[compact], 6)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(torch.autograd.grad(actual, z), torch.autograd.grad(expected, z))

    def test_cancelling_sum_stays_finite(self):
        z = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], requires_grad=True)
        block_contrast(z, PATH, self.ASSIGNMENT, 2).backward()
        assert z.grad.isfinite().all()

    def test_module_agrees(self, graph):
        adjacency, z = graph
        assignment = torch.arange(60) % 4
        torch.testing.assert_close(
            BlockContrast(adjacency, 4, 0.5)(z, assignment),
            block_contrast(z, adjacency, assignment, 4, inverse_temperature=0.5),
        )


def test_memory_holds_no_square_array():  # PamC card, check 8, asked of both losses
    n = 4000
    adjacency = row_normalized_adjacency(torch.randint(n, (2, 5 * n)), n)
    for objective in (NeighborContrast(adjacency), BlockContrast(adjacency, 10)):
        extra = (torch.randint(10, (n,)),) if isinstance(objective, BlockContrast) else ()
        largest = largest_tensor(lambda f=objective, e=extra: f(leaf(n), *e).backward())
        assert largest < n * n / 8


class TestSelfTraining:
    def test_student_t_by_hand(self):  # SCGC card, check 5
        z = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        centroids = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
        q = student_t_log_assignment(z, centroids).exp()
        torch.testing.assert_close(q, torch.tensor([[5 / 6, 1 / 6], [0.5, 0.5]]))

    def test_target_and_divergence_by_hand(self):  # SCGC card, check 6
        q = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]], requires_grad=True)
        p = target_distribution(q)
        expected = torch.tensor([[0.9412, 0.0588], [0.6923, 0.3077], [0.0122, 0.9878]])
        torch.testing.assert_close(p, expected, atol=5e-5, rtol=0)
        assert not p.requires_grad
        assert self_training_loss(q.log()).item() == pytest.approx(0.0552032, abs=1e-7)

    def test_against_loops(self):
        generator = torch.Generator().manual_seed(2)
        z = torch.randn(30, 4, generator=generator, dtype=torch.float64)
        centroids = torch.randn(5, 4, generator=generator, dtype=torch.float64)
        q = []
        for row in z.tolist():
            kernel = [
                1 / (1 + sum((a - b) ** 2 for a, b in zip(row, c, strict=True)))
                for c in centroids.tolist()
            ]
            q.append([value / sum(kernel) for value in kernel])
        sizes = [sum(row[a] for row in q) for a in range(5)]
        loss = 0.0
        for row in q:
            sharp = [row[a] ** 2 / sizes[a] for a in range(5)]
            for a in range(5):
                p = sharp[a] / sum(sharp)
                loss += p * math.log(p / row[a]) / len(q)
        log_q = student_t_log_assignment(z, centroids)
        torch.testing.assert_close(log_q.exp(), torch.tensor(q, dtype=torch.float64))
        assert self_training_loss(log_q).item() == pytest.approx(loss, rel=1e-12)

    def test_gradcheck(self):
        z = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
        centroids = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        p = torch.rand(7, 4, dtype=torch.float64).softmax(dim=1)
        assert torch.autograd.gradcheck(
            lambda z, c: self_training_loss(student_t_log_assignment(z, c), p), (z, centroids)
        )

    def test_no_gradient_through_the_target(self):
        log_q = torch.randn(6, 3).log_softmax(dim=1).requires_grad_()
        (implicit,) = torch.autograd.grad(self_training_loss(log_q), log_q)
        fixed = target_distribution(log_q.exp())
        torch.testing.assert_close(implicit, -fixed / 6)

    def test_unused_cluster_stays_unused(self):
        p = target_distribution(torch.tensor([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0]]))
        assert p.isfinite().all()
        assert p[:, 2].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: neighbor_contrast(Z3[0], PATH), r"z must be \(n, d\)"),
        (lambda: neighbor_contrast(Z3.long(), PATH), "z must be"),
        (lambda: neighbor_contrast(Z3[:2], PATH), r"weights must be \(n, n\) = \(2, 2\)"),
        (
            lambda: neighbor_contrast(Z3, PATH, inverse_temperature=float("nan")),
            "inverse_temperature must be at most 60",
        ),
        (lambda: block_contrast(Z3, PATH, torch.tensor([0, 1]), 2), r"assignment must be \(3,\)"),
        (
            lambda: block_contrast(Z3, PATH, torch.tensor([0, 1, 2]), 2),
            r"assignment must be int64 in \[0, n_clusters\)",
        ),
        (lambda: block_contrast(Z3, PATH, torch.tensor([0, 1, -1]), 2), "got -1"),
        (lambda: block_contrast(Z3, PATH, torch.zeros(3), 2), r"got torch\.float32"),
        (lambda: student_t_log_assignment(Z3, torch.zeros(2, 3)), "z and centroids"),
    ],
)
def test_bad_arguments_name_themselves(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


def leaf(n: int) -> torch.Tensor:
    return torch.randn(n, 10, requires_grad=True)
