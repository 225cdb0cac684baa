"""Against plain float64 loops, known optima and the fixed point's own equations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from common.errors import ArgumentError
from common.sinkhorn import _iteration as iteration
from common.sinkhorn import balanced_codes, doubly_stochastic, transport_plan
from tests.common import sinkhorn_ranks as ranks
from tests.ranks import on_ranks


def random_scores(n: int, k: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Cosines, more than one of which comes near 1."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    c = torch.randn(k, 3, generator=generator, dtype=torch.float64)
    unit = torch.nn.functional.normalize
    return (unit(x, dim=1) @ unit(c, dim=1).T).to(dtype)


def swav_codes(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The card of SwAV, operation for operation, on nested lists."""
    n, k = scores.shape
    q = [[math.exp(scores[i, j].item() / epsilon) for i in range(n)] for j in range(k)]
    total = sum(map(sum, q))
    q = [[entry / total for entry in row] for row in q]
    for _ in range(iterations):
        for j in range(k):
            row_sum = sum(q[j])
            q[j] = [entry / row_sum / k for entry in q[j]]
        for i in range(n):
            column_sum = sum(q[j][i] for j in range(k))
            for j in range(k):
                q[j][i] = q[j][i] / column_sum / n
    return n * torch.tensor(q, dtype=torch.float64).T


def log_sum_exp(values: list[float]) -> float:
    largest = max(values)
    if largest == -math.inf:
        return largest
    return largest + math.log(sum(math.exp(value - largest) for value in values))


def looped_plan(
    scores: Tensor,
    rows: list[float],
    columns: list[float],
    epsilon: float,
    iterations: int,
    row_power: float = 1.0,
    column_power: float = 1.0,
) -> Tensor:
    """Potentials of one row or column at a time, in float64."""
    z = (scores.double() / epsilon).tolist()
    n, k = scores.shape
    f, g = [0.0] * n, [0.0] * k
    for _ in range(iterations):
        for j in range(k):
            total = log_sum_exp([z[i][j] + f[i] for i in range(n)])
            g[j] = column_power * (math.log(columns[j]) - total)
        for i in range(n):
            total = log_sum_exp([z[i][j] + g[j] for j in range(k)])
            f[i] = row_power * (math.log(rows[i]) - total)
    plan = [[math.exp(z[i][j] + f[i] + g[j]) for j in range(k)] for i in range(n)]
    return torch.tensor(plan, dtype=torch.float64)


def looped_codes(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    n, k = scores.shape
    return looped_plan(scores, [1.0] * n, [n / k] * k, epsilon, iterations)


# Balanced codes


@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_codes_are_those_of_the_card(iterations, epsilon):
    scores = random_scores(9, 4)
    codes = balanced_codes(scores, epsilon=epsilon, iterations=iterations)
    torch.testing.assert_close(codes, swav_codes(scores, epsilon, iterations), rtol=1e-11, atol=0)


def test_codes_of_two_by_two():
    for iterations in (1, 2, 3, 50):
        codes = balanced_codes(torch.tensor([[0.1, 0.0], [0.0, 0.1]]), iterations=iterations)
        expected = torch.tensor([[0.8807971, 0.1192029], [0.1192029, 0.8807971]])
        torch.testing.assert_close(codes, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("epsilon", [1e-3, 1e-2, 0.05, 10.0])
@pytest.mark.parametrize("iterations", [1, 3, 100])
def test_codes_against_a_loop(dtype, epsilon, iterations):
    scores = random_scores(11, 5, dtype)
    codes = balanced_codes(scores, epsilon=epsilon, iterations=iterations)
    assert codes.dtype == torch.promote_types(dtype, torch.float32)
    # Scores are known to half a unit of the last place, and divided by epsilon.
    precision = 1e-10 if dtype == torch.float64 else max(1e-5, 1e-6 / epsilon)
    expected = looped_codes(scores, epsilon, iterations)
    torch.testing.assert_close(codes.double(), expected, rtol=0, atol=precision)


@pytest.mark.parametrize("epsilon", [1e-3, 0.05])
def test_many_blocks_and_reevaluations_change_nothing(monkeypatch, epsilon):
    scores = random_scores(40, 6)
    whole = balanced_codes(scores, epsilon=epsilon, iterations=30)
    monkeypatch.setattr(iteration, "BLOCK_ENTRIES", 20)
    blocks = balanced_codes(scores, epsilon=epsilon, iterations=30)
    torch.testing.assert_close(blocks, whole, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(blocks, looped_codes(scores, epsilon, 30), rtol=0, atol=1e-10)


def test_the_kernel_is_evaluated_anew_only_when_needed(monkeypatch):
    calls = []
    evaluate = iteration._evaluate
    monkeypatch.setattr(iteration, "_evaluate", lambda *a: calls.append(1) or evaluate(*a))
    scores = random_scores(30, 6, torch.float32)
    balanced_codes(scores, epsilon=0.05, iterations=100)
    assert len(calls) == 0
    balanced_codes(scores, epsilon=1e-3, iterations=1000)
    assert 1 < len(calls) < 100


@pytest.mark.parametrize("value", [0.0, 1e30, -1e30, 1e-30, 3e38])
def test_equal_scores_give_uniform_codes(value):
    codes = balanced_codes(torch.full((6, 4), value))
    torch.testing.assert_close(codes, torch.full((6, 4), 0.25))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e4, 1e30, 1e38, 3e38])
@pytest.mark.parametrize("epsilon", [1e-3, 0.05])
def test_every_finite_score_gives_finite_codes(dtype, scale, epsilon):
    scores = random_scores(12, 5, dtype) * scale
    scores[3], scores[4], scores[:, 2] = -scale, scale, scores[:, 2] / 2
    scores[5, 0], scores[6, 0] = scale, -scale
    for gradient in (None, "implicit", "unrolled", "rows"):
        leaf = scores.clone().requires_grad_(gradient is not None)
        codes = balanced_codes(leaf, epsilon=epsilon, iterations=20, gradient=gradient)
        torch.testing.assert_close(codes.sum(dim=1), torch.ones(12))
        assert codes.min() >= 0
        if gradient:
            (codes * codes).sum().backward()
            assert leaf.grad.isfinite().all()


def test_huge_offsets_of_columns_cancel():
    scores = torch.tensor([[1e30, 0.0], [1e30, 0.0], [1e30, 0.0]])
    torch.testing.assert_close(balanced_codes(scores), torch.full((3, 2), 0.5))


def test_one_row_and_one_column():
    torch.testing.assert_close(
        balanced_codes(torch.tensor([[0.3, -2.0, 9.0]])), torch.ones(1, 3) / 3
    )
    torch.testing.assert_close(balanced_codes(torch.tensor([[0.3], [-2e3]])), torch.ones(2, 1))


def test_masked_scores_get_nothing():
    scores = random_scores(8, 4)
    scores[0, 1:], scores[3, :2] = -torch.inf, -torch.inf
    for epsilon in (0.05, 1e-3):
        codes = balanced_codes(scores, epsilon=epsilon, iterations=20)
        assert codes[scores == -torch.inf].eq(0).all()
        torch.testing.assert_close(codes, looped_codes(scores, epsilon, 20), rtol=0, atol=1e-10)
    # No plan meets both marginals: rows still do.
    infeasible = torch.tensor([[0.0, -torch.inf]] * 3 + [[0.0, 0.0]])
    codes = balanced_codes(infeasible, iterations=1000)
    torch.testing.assert_close(codes[:, 1], torch.tensor([0.0, 0.0, 0.0, 1.0]), atol=1e-3, rtol=0)


def test_queue_rows_take_part_and_are_not_returned():
    scores, queue = random_scores(6, 4), random_scores(20, 4, torch.float32, seed=1)
    codes = balanced_codes(scores, queue=queue)
    both = torch.cat([queue.double(), scores])
    torch.testing.assert_close(codes, swav_codes(both, 0.05, 3)[20:])
    assert codes.untyped_storage().nbytes() == codes.nbytes
    assert not torch.allclose(codes, balanced_codes(scores))


def test_a_tolerance_stops_early_and_is_kept(monkeypatch):
    scores = random_scores(50, 7)
    steps = []
    scale = iteration._scale
    monkeypatch.setattr(iteration, "_scale", lambda *a: steps.append(1) or scale(*a))
    codes = balanced_codes(scores, epsilon=0.1, iterations=5000, tol=1e-6)
    assert 3 < len(steps) < 1000
    torch.testing.assert_close(
        codes.sum(dim=0), torch.full((7,), 50 / 7, dtype=torch.float64), rtol=1e-6, atol=0
    )


matrices = st.tuples(st.integers(1, 7), st.integers(1, 5), st.integers(0, 2**20)).map(
    lambda drawn: random_scores(*drawn[:2], seed=drawn[2])
)


@settings(max_examples=30, deadline=None)
@given(scores=matrices, epsilon=st.sampled_from([0.05, 0.3, 2.0]), seed=st.integers(0, 99))
def test_properties_of_codes(scores, epsilon, seed):
    n, k = scores.shape
    torch.manual_seed(seed)
    codes = balanced_codes(scores, epsilon=epsilon)
    ones = torch.ones(n, dtype=torch.float64)
    torch.testing.assert_close(codes.sum(dim=1), ones, rtol=1e-14, atol=0)
    by_column = 5 * torch.randn(k, dtype=torch.float64)
    shifted = balanced_codes(scores + by_column - 3, epsilon=epsilon)
    torch.testing.assert_close(shifted, codes, rtol=1e-9, atol=1e-12)

    rows, columns = torch.randperm(n), torch.randperm(k)
    permuted = balanced_codes(scores[rows][:, columns], epsilon=epsilon)
    torch.testing.assert_close(permuted, codes[rows][:, columns], rtol=1e-11, atol=1e-14)
    assert torch.equal(balanced_codes(scores, epsilon=epsilon), codes)

    options = {"epsilon": 10 * epsilon, "iterations": 10_000, "tol": 1e-11}
    converged = balanced_codes(scores, **options)
    shares = torch.full((k,), n / k, dtype=torch.float64)
    torch.testing.assert_close(converged.sum(dim=0), shares, rtol=1e-9, atol=0)
    by_row = torch.randn(n, 1, dtype=torch.float64)
    shifted = balanced_codes(scores + by_row, **options)
    torch.testing.assert_close(shifted, converged, rtol=1e-7, atol=1e-9)


@settings(max_examples=10, deadline=None)
@given(scores=matrices, seed=st.integers(0, 99))
def test_limits_of_epsilon(scores, seed):
    n, k = scores.shape
    torch.manual_seed(seed)
    rows = torch.rand(n, dtype=torch.float64) + 0.1
    columns = torch.rand(k, dtype=torch.float64) + 0.1
    columns *= rows.sum() / columns.sum()
    product = rows[:, None] * columns / rows.sum()
    torch.testing.assert_close(
        transport_plan(scores, rows, columns, epsilon=1e6), product, rtol=1e-5, atol=0
    )
    square = random_scores(k, k, seed=seed)
    sharp = doubly_stochastic(square, epsilon=1e-3, iterations=300)
    best = square[linear_sum_assignment(square, maximize=True)].sum()
    # The entropic optimum is short of the best by at most epsilon times the entropy.
    value = (sharp * square).sum()
    slack = 2 * (sharp.sum(dim=0) - 1).abs().sum()  # columns that are not met yet
    assert value <= best + slack + 1e-9
    assert value >= best - 1e-3 * k * math.log(k) - slack - 1e-9


# Transport plans


def test_plans_against_a_loop():
    scores = random_scores(7, 5)
    rows, columns = [0.1, 0.2, 0.1, 0.05, 0.3, 0.15, 0.1], [0.5, 0.1, 0.1, 0.2, 0.1]
    tensors = (torch.tensor(x, dtype=torch.float64) for x in (rows, columns))
    plan = transport_plan(scores, *tensors, epsilon=0.05, iterations=17, tol=None)
    torch.testing.assert_close(plan, looped_plan(scores, rows, columns, 0.05, 17))


@pytest.mark.parametrize("strengths", [(0.1, math.inf), (math.inf, 0.1), (0.3, 1.0), (0.01, 0.02)])
@pytest.mark.parametrize("epsilon", [1e-3, 0.05, 1.0])
@pytest.mark.parametrize("offset", [-1.0, -10.0])
def test_relaxed_plans_against_a_loop(strengths, epsilon, offset):
    scores = random_scores(6, 4) + offset
    rows, columns = [0.1, 0.2, 0.1, 0.1, 0.3, 0.4], [0.5, 0.2, 0.1, 0.1]
    powers = [1 / (1 + epsilon / strength) for strength in strengths]
    for iterations in (1, 40):
        plan = transport_plan(
            scores,
            *(torch.tensor(x, dtype=torch.float64) for x in (rows, columns)),
            epsilon=epsilon,
            iterations=iterations,
            tol=None,
            row_strength=strengths[0],
            column_strength=strengths[1],
        )
        expected = looped_plan(scores, rows, columns, epsilon, iterations, *powers)
        torch.testing.assert_close(plan, expected, rtol=1e-8, atol=1e-12 * expected.max().item())


def test_relaxed_plan_is_the_optimum():
    scores = random_scores(4, 3, seed=5) - 0.5
    rows, columns = (torch.tensor(x).double() for x in ([0.3, 0.2, 0.4, 0.1], [0.6, 0.5, 0.2]))
    plan = transport_plan(
        scores, rows, columns, epsilon=0.2, tol=1e-13, row_strength=0.7, column_strength=0.4
    ).requires_grad_()

    def divergence(p, q):
        return (p * (p / q).log() - p + q).sum()

    objective = (plan * scores).sum() - 0.2 * (plan * (plan.log() - 1)).sum()
    objective -= 0.7 * divergence(plan.sum(dim=1), rows)
    objective -= 0.4 * divergence(plan.sum(dim=0), columns)
    (slope,) = torch.autograd.grad(objective, plan)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-10)


def test_strengths_without_bound_are_constraints():
    scores, rows = random_scores(5, 3), torch.tensor([0.1, 0.2, 0.3, 0.3, 0.1]).double()
    strict = transport_plan(scores, rows, tol=1e-12)
    loose = transport_plan(scores, rows, tol=1e-12, row_strength=1e9, column_strength=1e9)
    torch.testing.assert_close(loose, strict, rtol=1e-6, atol=1e-9)


def test_rows_and_columns_of_no_weight_are_left_out():
    scores = random_scores(5, 4).requires_grad_()
    rows = torch.tensor([0.5, 0.0, 0.2, 0.3, 0.0]).double()
    columns = torch.tensor([0.4, 0.0, 0.3, 0.3]).double()
    plan = transport_plan(scores, rows, columns)
    i, j = torch.tensor([[0], [2], [3]]), torch.tensor([0, 2, 3])
    inner = transport_plan(scores[i, j], rows[i[:, 0]], columns[j])
    torch.testing.assert_close(plan[i, j], inner)
    assert (plan[1].sum(), plan[4].sum(), plan[:, 1].sum()) == (0, 0, 0)
    plan.square().sum().backward()
    assert scores.grad[[1, 4]].eq(0).all()
    assert scores.grad[0, 0] != 0


@pytest.mark.parametrize("smallest", [1e-12, 1e-20, 1e-30])
def test_tiny_marginals_stay_finite(smallest):
    scores = torch.eye(2) * 2 - 1
    plan = transport_plan(scores, torch.tensor([1.0, smallest]), epsilon=1e-3, column_strength=1.0)
    assert plan.isfinite().all()
    strict = transport_plan(scores, torch.tensor([1.0, smallest]), epsilon=1e-3)
    torch.testing.assert_close(strict[0], torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(strict.sum(dim=1), torch.tensor([1.0, smallest]))


def test_marginals_that_agree_to_rounding_are_reconciled():
    columns = torch.full((3000,), 1 / 3000).bfloat16().float()
    plan = transport_plan(torch.zeros(2, 3000), None, columns / columns.sum() * 1.0005)
    assert plan.sum().item() == pytest.approx(1, rel=1e-5)


# Doubly stochastic matrices


def test_doubly_stochastic_meets_both_marginals_and_keeps_symmetry():
    x = random_scores(20, 6)
    affinity = x @ x.T
    for epsilon in (0.5, 5.0):
        g = doubly_stochastic(affinity, epsilon=epsilon, iterations=10**4, tol=1e-10)
        ones = torch.ones(20, dtype=torch.float64)
        torch.testing.assert_close(g.sum(dim=0), ones, rtol=1e-9, atol=0)
        torch.testing.assert_close(g.sum(dim=1), ones, rtol=1e-12, atol=0)
        torch.testing.assert_close(g, g.T, rtol=1e-6, atol=1e-9)
    uniform = doubly_stochastic(affinity, epsilon=1e6)
    torch.testing.assert_close(uniform, torch.full_like(uniform, 0.05), rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", [1.0, 1e4, 3e38])
def test_five_half_steps_from_the_rows(scale):
    affinity = random_scores(6, 6)
    z = affinity / 0.175
    u, v = torch.zeros(6, 1).double(), torch.zeros(6).double()
    for half_step in range(5):
        if half_step % 2 == 0:
            u = -(z + v).logsumexp(dim=1, keepdim=True)
        else:
            v = -(z + u).logsumexp(dim=0)
    g = doubly_stochastic(affinity, epsilon=0.175, iterations=2, tol=None)
    torch.testing.assert_close(g, (z + u + v).exp())
    huge = doubly_stochastic((affinity * scale).float(), epsilon=0.175)
    torch.testing.assert_close(huge.sum(dim=1), torch.ones(6))


# Gradients


def objective_gradient(function, scores: Tensor) -> Tensor:
    leaf = scores.clone().requires_grad_()
    plan = function(leaf)
    weights = torch.sin(torch.arange(plan.numel(), dtype=plan.dtype)).view_as(plan)
    (plan * (weights + plan)).sum().backward()
    return leaf.grad


@pytest.mark.parametrize("strengths", [(math.inf, math.inf), (0.2, math.inf), (0.3, 0.5)])
def test_gradients_against_finite_differences(strengths):
    scores = (random_scores(5, 4) - 0.2).requires_grad_()
    rows = torch.tensor([0.1, 0.2, 0.3, 0.3, 0.1]).double()

    def plan(gradient, scores):
        return transport_plan(
            scores,
            rows,
            epsilon=0.5,
            iterations=400,
            tol=1e-13,
            row_strength=strengths[0],
            column_strength=strengths[1],
            gradient=gradient,
        )

    for gradient in ("implicit", "unrolled"):
        assert torch.autograd.gradcheck(lambda s, mode=gradient: plan(mode, s), scores)
    assert torch.autograd.gradgradcheck(lambda s: plan("unrolled", s), scores)
    results = [
        objective_gradient(lambda s, mode=mode: plan(mode, s), scores.detach())
        for mode in ("implicit", "unrolled")
    ]
    torch.testing.assert_close(*results, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("epsilon", [0.02, 0.3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_implicit_and_unrolled_agree_at_convergence(epsilon, dtype):
    scores = random_scores(12, 12, dtype)
    options = {"epsilon": epsilon, "iterations": 20_000, "tol": 1e-12}
    if dtype == torch.float32:
        options["tol"] = 2e-6
    implicit = objective_gradient(lambda s: doubly_stochastic(s, **options), scores)
    exact = objective_gradient(
        lambda s: doubly_stochastic(s, gradient="unrolled", **{**options, "tol": 1e-9}),
        scores.double(),
    )
    precision = 1e-5 if dtype == torch.float64 else 2e-3
    error = (implicit.double() - exact).abs().max() / exact.abs().max()
    assert error < precision


def test_unrolled_few_iterations_against_finite_differences():
    scores = random_scores(5, 4).requires_grad_()
    for start in (
        lambda s: balanced_codes(s, epsilon=0.2, gradient="unrolled"),
        lambda s: doubly_stochastic(
            s[:4], epsilon=0.2, iterations=2, tol=None, gradient="unrolled"
        ),
        lambda s: transport_plan(
            s - 1,
            epsilon=0.2,
            iterations=3,
            row_strength=0.1,
            column_strength=0.2,
            gradient="unrolled",
        ),
    ):
        with torch.no_grad():
            plain = start(scores)
        torch.testing.assert_close(start(scores), plain, rtol=1e-11, atol=1e-15)
        assert torch.autograd.gradcheck(start, scores)


def test_gradient_of_the_rows_holds_columns_constant():
    scores = random_scores(6, 6)
    rows_only = objective_gradient(
        lambda s: doubly_stochastic(s, epsilon=0.2, iterations=2, tol=None, gradient="rows"), scores
    )
    z = scores / 0.2
    v = torch.zeros(6).double()
    for _ in range(2):
        v = -(z - (z + v).logsumexp(dim=1, keepdim=True)).logsumexp(dim=0)
    softmax = objective_gradient(lambda s: (s / 0.2 + v).softmax(dim=1), scores)
    torch.testing.assert_close(rows_only, softmax)


def test_codes_are_constants_by_default():
    scores = random_scores(5, 3).requires_grad_()
    assert not balanced_codes(scores).requires_grad
    assert not transport_plan(scores, gradient=None).requires_grad
    assert transport_plan(scores).requires_grad
    with torch.no_grad():
        assert not transport_plan(scores, gradient="unrolled").requires_grad


def test_gradient_reaches_half_precision():
    scores = random_scores(5, 3, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grad = objective_gradient(transport_plan, scores)
    assert grad.dtype == torch.bfloat16
    expected = objective_gradient(transport_plan, scores.double())
    torch.testing.assert_close(grad.double(), expected, rtol=2e-2, atol=2e-2)


def test_autocast_changes_nothing():
    scores = random_scores(5, 3, torch.float32)
    plain = balanced_codes(scores)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(balanced_codes(scores), plain)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": torch.zeros(3)}, r"scores must be floating point and \(n, k\).*got"),
        ({"scores": torch.zeros(3, 0)}, "scores must be"),
        ({"scores": torch.zeros(0, 3)}, "scores must be of at least one row"),
        ({"scores": torch.zeros(3, 2, dtype=torch.int64)}, "scores must be floating point"),
        ({"scores": [[0.0]]}, "scores must be.*got 'list'"),
        ({"scores": torch.tensor([[0.0, torch.nan]])}, "scores must be finite.*NaN"),
        ({"scores": torch.tensor([[0.0, torch.inf]])}, "scores must be finite"),
        ({"scores": torch.tensor([[0.0, -torch.inf]])}, "scores must have.*every row and column"),
        ({"scores": torch.tensor([[-torch.inf], [0.0]])}, "scores must have.*every row and column"),
        ({"epsilon": 0.0}, "epsilon must be between 1e-20 and 1e20, got 0.0"),
        ({"epsilon": math.nan}, "epsilon must be"),
        ({"iterations": 0}, "iterations must be an integer of at least 1, got 0"),
        ({"tol": -1.0}, "tol must be at least 0"),
        ({"gradient": "exact"}, "gradient must be implicit, unrolled, rows or None, got 'exact'"),
    ],
)
def test_wrong_arguments_name_themselves(arguments, message):
    arguments = {"scores": torch.zeros(2, 3), **arguments}
    for function in (balanced_codes, transport_plan):
        with pytest.raises(ArgumentError, match=message):
            function(arguments["scores"], **{k: v for k, v in arguments.items() if k != "scores"})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: balanced_codes(torch.zeros(2, 3), queue=torch.zeros(2, 4)),
            r"queue must be \(m, 3",
        ),
        (lambda: balanced_codes(torch.zeros(2, 3), queue=torch.full((1, 3), torch.nan)), "NaN"),
        (lambda: transport_plan(torch.zeros(2, 3), torch.ones(3)), r"rows must be a \(2,\) tensor"),
        (lambda: transport_plan(torch.zeros(2, 3), None, torch.ones(2)), r"columns must be a \(3,"),
        (lambda: transport_plan(torch.zeros(2, 3), torch.tensor([1, -1.0])), "rows must be finite"),
        (lambda: transport_plan(torch.zeros(2, 3), torch.zeros(2)), "rows must be of a positive"),
        (lambda: transport_plan(torch.zeros(2, 3), None, torch.ones(3)), "same sum, got 1 and 3"),
        (lambda: transport_plan(torch.zeros(2, 3), row_strength=0.0), "row_strength must be above"),
        (
            lambda: transport_plan(torch.full((2, 3), 99.0), row_strength=0.1, column_strength=0.1),
            "scores must not exceed .*got 99",
        ),
        (lambda: doubly_stochastic(torch.zeros(2, 3)), "affinity must be square"),
        (lambda: doubly_stochastic(torch.full((2, 2), torch.nan)), "affinity must be finite"),
    ],
)
def test_arguments_that_do_not_fit_name_themselves(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


# Ranks


def test_two_ranks_act_as_one(tmp_path):
    first, second = on_ranks(ranks.everything_on_each, tmp_path)
    scores, (rows, columns) = ranks.scores(), ranks.marginals()
    queue = ranks.scores(24, 4)[12:]

    def gradient(mode):
        leaf = scores.clone().requires_grad_()
        plan = transport_plan(leaf, epsilon=0.2, tol=1e-12, gradient=mode)
        (plan * (plan + scores.flip(0))).sum().backward()
        return leaf.grad

    alone = {
        "codes": balanced_codes(scores),
        "sharp": balanced_codes(scores, epsilon=1e-3, iterations=300, tol=1e-9),
        "queue": balanced_codes(scores, queue=queue, iterations=2),
        "masked": balanced_codes(ranks.masked_scores()),
        "uneven": balanced_codes(scores, epsilon=1e-2),
        "plan": transport_plan(scores, rows, columns),
        "relaxed": transport_plan(scores, rows, columns, column_strength=0.3),
        "square": doubly_stochastic(ranks.scores(12, 12), epsilon=0.1),
        **{mode: gradient(mode) for mode in ("implicit", "unrolled", "rows")},
    }
    for name, expected in alone.items():
        together = torch.cat([first[name], second[name]])
        torch.testing.assert_close(together, expected, rtol=1e-9, atol=1e-12, msg=name)
    assert first["refusal"] == second["refusal"] == "scores must be finite or -inf, got NaN or +inf"
