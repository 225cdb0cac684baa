"""Whitening against the paper's checks and a slow reference in NumPy, float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from common.errors import ArgumentError
from common.whitening import group_whiten, inverse_square_root, shuffled_group_whiten

METHODS = ["eigen", "newton"]
every_method = pytest.mark.parametrize("method", METHODS)


def rows(n: int = 40, d: int = 12, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return (noise @ (mixing + 2 * torch.eye(d)) + 3).to(dtype)


def slow_group_whiten(x: Tensor, n_groups: int, permutation: Tensor, epsilon: float = 0) -> Tensor:
    """Group by group, the root by a singular value decomposition of the centred rows."""
    x, width = x.numpy(), x.shape[1] // n_groups
    y = np.empty_like(x)
    for g in range(n_groups):
        own = permutation.numpy()[g * width : (g + 1) * width]
        centred = x[:, own] - x[:, own].mean(axis=0)
        left, singular, right = np.linalg.svd(centred, full_matrices=False)
        eigenvalues = singular**2 / len(x)
        shrunk = eigenvalues + epsilon * eigenvalues.sum() / width
        y[:, own] = left @ np.diag(singular / np.sqrt(shrunk)) @ right
    return torch.from_numpy(y)


def hadamard(scales: list[float]) -> Tensor:
    """Eight rows whose covariance is diagonal, with the squares of up to 7 scales."""
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    columns = torch.kron(torch.kron(two, two), two)[:, 1 : len(scales) + 1]
    return columns * torch.tensor(scales, dtype=torch.float64)


@every_method
@pytest.mark.parametrize("n_groups", [1, 3, 12])
@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_equals_the_slow_form(method, n_groups, epsilon):
    x, permutation = rows(), torch.randperm(12)
    y = group_whiten(
        x, n_groups, permutation=permutation, method=method, iterations=40, epsilon=epsilon
    )
    expected = slow_group_whiten(x, n_groups, permutation, epsilon)
    torch.testing.assert_close(y, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_groups_have_mean_zero_and_covariance_identity(dtype):
    x, permutation = rows(128, 96, dtype), torch.randperm(96)
    y = group_whiten(x, 16, permutation=permutation)[:, permutation]
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(y.mean(dim=0), torch.zeros(96, dtype=dtype), rtol=0, atol=tolerance)
    for group in y.split(6, dim=1):
        covariance = group.T @ group / 128
        torch.testing.assert_close(
            covariance, torch.eye(6, dtype=dtype), rtol=0, atol=tolerance * 10
        )


def test_one_feature_a_group_is_standardisation():
    for column, expected in (([1, 3], [-1, 1]), ([0, 0, 3, 3], [-1, -1, 1, 1])):
        x = torch.tensor(column, dtype=torch.float64)[:, None]
        torch.testing.assert_close(group_whiten(x).flatten().tolist(), [float(e) for e in expected])
    x = rows()
    expected = (x - x.mean(dim=0)) / x.std(dim=0, correction=0)
    for permutation in (None, torch.randperm(12)):
        torch.testing.assert_close(group_whiten(x, 12, permutation=permutation), expected)


def test_mean_and_scale_do_not_matter_nor_the_identity_permutation():
    x = rows()
    y = group_whiten(x, 3, epsilon=0.1)
    torch.testing.assert_close(group_whiten(x, 3, epsilon=0.1, permutation=torch.arange(12)), y)
    torch.testing.assert_close(group_whiten(x + torch.randn(12), 3, epsilon=0.1), y)
    torch.testing.assert_close(group_whiten(7 * x, 3, epsilon=0.1), y)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@every_method
def test_extreme_scales_give_the_same(method, scale):
    x = rows(dtype=torch.float32)
    y = group_whiten(x * scale, 3, method=method)
    torch.testing.assert_close(y, group_whiten(x, 3, method=method), rtol=1e-3, atol=1e-3)


def test_one_group_ignores_the_permutation():
    x = rows()
    torch.testing.assert_close(group_whiten(x, permutation=torch.randperm(12)), group_whiten(x))


def test_shuffling_draws_a_new_permutation_each_time():
    x, generator = rows(), torch.Generator().manual_seed(5)
    first = shuffled_group_whiten(x, 3, generator=generator)
    second = shuffled_group_whiten(x, 3, generator=generator)
    assert not torch.allclose(first, second)
    permutation = torch.randperm(12, generator=torch.Generator().manual_seed(5))
    assert torch.equal(first, group_whiten(x, 3, permutation=permutation))


# Gradient


@every_method
@pytest.mark.parametrize(
    ("x", "epsilon"),
    [
        (rows(9, 4), 0.0),
        (hadamard([1, 1, 1]), 0.0),  # all eigenvalues coincide
        (hadamard([2, 1, 1]), 0.0),
        (hadamard([1, 1, 0]), 0.1),  # two coincide, one vanishes
        (rows(4, 6), 0.1),  # fewer rows than features
    ],
    ids=["generic", "all coincide", "two coincide", "one vanishes", "n < d"],
)
def test_the_gradient_is_exact(method, x, epsilon):
    x = x.clone().requires_grad_()
    weights = torch.randn(x.shape, dtype=torch.float64)

    def scalar(x: Tensor) -> Tensor:
        return (weights * group_whiten(x, epsilon=epsilon, method=method)).sum()

    assert gradcheck(scalar, x)


def test_the_gradient_is_exact_in_the_span_of_few_rows():
    x = rows(4, 6).requires_grad_()
    assert gradcheck(group_whiten, x)


def test_the_gradient_of_the_root_is_exact():
    def root(x: Tensor) -> Tensor:
        return inverse_square_root((x + x.mT) / 2)

    random = rows(4, 4)
    matrices = [torch.eye(4), torch.diag(torch.tensor([4.0, 1, 1, 1e-3])), random @ random.T]
    assert gradcheck(root, torch.stack([m.double() for m in matrices]).requires_grad_())


def test_the_gradient_without_the_root_passes_through_the_centred_rows_alone():
    x = rows(8, 3).requires_grad_()
    weights = torch.randn(8, 3, dtype=torch.float64)
    (weights * group_whiten(x, 3, whitening_grad=False)).sum().backward()
    std = x.detach().std(dim=0, correction=0)
    torch.testing.assert_close(x.grad, (weights - weights.mean(dim=0)) / std)
    assert torch.equal(group_whiten(x, whitening_grad=False), group_whiten(x))


@pytest.mark.parametrize("n_groups", [1, 2, 6])
def test_the_gradient_has_no_part_that_whitening_undoes(n_groups):
    x = rows(9, 6).requires_grad_()
    y = group_whiten(x, n_groups)
    (torch.randn(9, 6, dtype=torch.float64) * y.exp()).sum().backward()
    for own, grad in zip(y.chunk(n_groups, dim=1), x.grad.chunk(n_groups, dim=1), strict=True):
        inner = own.T @ grad
        torch.testing.assert_close(inner, -inner.T, rtol=0, atol=1e-9)


def test_two_rows_of_one_feature_have_no_gradient():
    x = torch.tensor([[1.0], [3.0]], requires_grad=True)
    (group_whiten(x) * torch.tensor([[2.0], [-5.0]])).sum().backward()
    torch.testing.assert_close(x.grad, torch.zeros(2, 1), rtol=0, atol=1e-6)


@every_method
@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(6, 4),
        torch.full((6, 4), 0.3),
        torch.ones(1, 4),
        hadamard([1, 1, 1, 0]).float(),
        rows(20, 2, torch.float32).repeat(1, 2),  # duplicated features
        rows(3, 8, torch.float32),
        rows(6, 4, torch.float32).repeat_interleave(5, dim=0)[:6],
        rows(8, 4, torch.float32) * torch.tensor([1e18, 1.0, 1e-18, 0.0]),
    ],
    ids=["zeros", "constant", "one row", "no variance", "copies", "n < d", "repeats", "scales"],
)
def test_degenerate_rows_have_finite_results_and_gradients(method, x):
    x = x.clone().requires_grad_()
    y = group_whiten(x, method=method)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


def test_a_second_derivative_is_exact_or_refused():
    x = rows(6, 2).requires_grad_()
    assert gradgradcheck(lambda x: group_whiten(x, method="newton"), x)
    (gradient,) = torch.autograd.grad(group_whiten(x).exp().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"second derivative.*newton"):
        gradient.square().sum().backward()


# The root


def test_the_root_of_a_diagonal_matrix():
    for method in METHODS:
        root = inverse_square_root(torch.diag(torch.tensor([4.0, 0.25])), method=method)
        torch.testing.assert_close(root, torch.diag(torch.tensor([0.5, 2.0])))


@pytest.mark.parametrize("condition", [1e1, 1e3, 1e6])
def test_newtons_root_equals_that_by_eigenvalues(condition):
    basis = torch.linalg.qr(rows(8, 8)).Q
    spectrum = torch.logspace(0, -math.log10(condition), 8, dtype=torch.float64)
    matrix = (basis * spectrum) @ basis.T
    rounds = int(2.5 * math.log(float(matrix.norm()) * condition) / 2) + 8  # as the docstring says
    root = inverse_square_root(matrix, method="newton", iterations=rounds)
    torch.testing.assert_close(root, inverse_square_root(matrix), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(root @ matrix @ root, torch.eye(8).double(), rtol=0, atol=1e-7)


def test_a_vanished_eigenvalue_gives_the_pseudo_inverse():
    matrix = torch.diag(torch.tensor([4.0, 0.0, 1e-9]))
    expected = torch.diag(torch.tensor([0.5, 0.0, 0.0]))
    torch.testing.assert_close(inverse_square_root(matrix), expected)
    assert torch.equal(inverse_square_root(torch.zeros(2, 3, 3)), torch.zeros(2, 3, 3))


# Precision and arguments


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_compute_in_float32(method, dtype):
    x = rows(dtype=dtype)
    expected = group_whiten(x.float(), 3, method=method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = group_whiten(x, 3, method=method)
    assert y.dtype == torch.float32
    assert torch.equal(y, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.full((4, 6), torch.nan)}, "x must be finite"),
        ({"x": torch.zeros(4, 6, 1)}, "x must be"),
        ({"x": torch.zeros(4, 6, dtype=torch.int64)}, "x must be"),
        ({"n_groups": 4}, "n_groups must be a divisor of d = 6"),
        ({"epsilon": -1}, "epsilon"),
        ({"method": "qr"}, "method"),
        ({"method": "newton", "iterations": 0}, "iterations"),
        ({"permutation": torch.tensor([0, 1, 2, 3, 4, 4])}, "permutation"),
        ({"permutation": torch.arange(5)}, "permutation"),
    ],
)
def test_wrong_arguments_name_themselves(change, message):
    with pytest.raises(ArgumentError, match=message):
        group_whiten(**{"x": rows(4, 6), "n_groups": 2, **change})
