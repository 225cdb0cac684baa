"""The checks every assigner passes. A new one joins by one line in ``ASSIGNERS``."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from common.errors import ArgumentError
from common.kmeans import KMeans, balanced_labels
from common.losses import student_t_log_assignment
from common.losses._similarity import unit_rows
from common.mixture import GaussianMixture
from common.sinkhorn import balanced_codes, transport_plan

N, D, K = 40, 5, 4


@dataclass(frozen=True)
class Assigner:
    """Rows ``(n, d)`` and centroids ``(k, d)`` to labels ``(n,)`` or codes ``(n, k)``.

    Args:
        function: the assignment, with everything but rows and centroids bound.
        differentiable: codes whose gradient reaches the rows.
        checks_values: NaN is refused. Otherwise, as befits a function inside a training step, which
            must not wait for the device, a NaN row gets NaN codes and the others are unaffected.
        needs_rows: fewer rows than centroids are refused; otherwise they are assigned as well.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    differentiable: bool
    checks_values: bool = True
    needs_rows: bool = False


def kmeans(metric: str, *, limited: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    def assign(x: Tensor, centroids: Tensor) -> Tensor:
        size = len(x) if limited else None
        options = {"metric": metric, "max_cluster_size": size, "engine": "torch"}
        return KMeans(len(centroids), init=centroids, **options).fit_predict(x)

    return assign


def mixture(covariance: str) -> Callable[[Tensor, Tensor], Tensor]:
    def assign(x: Tensor, centroids: Tensor) -> Tensor:
        fitted = GaussianMixture(len(centroids), covariance=covariance, init=centroids).fit(x)
        return fitted.responsibilities(x)

    return assign


def cosines(x: Tensor, centroids: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return unit_rows(x) @ unit_rows(centroids).T


def transport(x: Tensor, centroids: Tensor) -> Tensor:
    plan = transport_plan(cosines(x, centroids), epsilon=0.1, tol=1e-10)
    return len(x) * plan


ASSIGNERS = {
    "kmeans": Assigner(kmeans("euclidean"), differentiable=False, needs_rows=True),
    "kmeans_cosine": Assigner(kmeans("cosine"), differentiable=False, needs_rows=True),
    "mixture": Assigner(mixture("full"), differentiable=False, needs_rows=True),
    "mixture_diagonal": Assigner(mixture("diag"), differentiable=False, needs_rows=True),
    "kmeans_limited": Assigner(
        kmeans("euclidean", limited=True), differentiable=False, needs_rows=True
    ),
    "balanced": Assigner(lambda x, c: balanced_labels(x, c, len(x)), differentiable=False),
    "sinkhorn": Assigner(lambda x, c: balanced_codes(cosines(x, c)), differentiable=False),
    "transport": Assigner(transport, differentiable=True),
    "student_t": Assigner(
        lambda x, centroids: student_t_log_assignment(x, centroids).exp(),
        differentiable=True,
        checks_values=False,
    ),
}

every_assigner = pytest.mark.parametrize("assigner", ASSIGNERS.values(), ids=ASSIGNERS.keys())


def rows(dtype: torch.dtype = torch.float32, n: int = N) -> tuple[Tensor, Tensor]:
    """Rows around well separated centroids, and the centroids."""
    generator = torch.Generator().manual_seed(0)
    centroids = torch.eye(K, D, dtype=torch.float64)
    noise = 0.1 * torch.randn(n, D, generator=generator, dtype=torch.float64)
    return (centroids[torch.arange(n) % K] + noise).to(dtype), centroids.to(dtype)


def hard(assignment: Tensor) -> Tensor:
    return assignment.argmax(dim=1) if assignment.ndim == 2 else assignment


def assert_valid(assignment: Tensor, n: int, k: int) -> None:
    if assignment.ndim == 1:
        assert assignment.shape == (n,)
        assert assignment.dtype == torch.int64
        assert assignment.min() >= 0
        assert assignment.max() < k
    else:
        assert assignment.shape == (n, k)
        assert assignment.isfinite().all()
        assert assignment.min() >= 0
        total = assignment.double().sum(dim=1)
        tolerance = 4 * k * torch.finfo(assignment.dtype).eps
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=tolerance)


@every_assigner
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_separated_rows_go_to_their_centroid(assigner, dtype):
    x, centroids = rows(dtype)
    assignment = assigner.function(x, centroids)
    assert_valid(assignment, N, K)
    assert hard(assignment).tolist() == [i % K for i in range(N)]


@every_assigner
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_autocast_is_allowed(assigner, dtype):
    x, centroids = rows(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assignment = assigner.function(x, centroids)
    assert_valid(assignment, N, K)
    assert torch.equal(hard(assignment), hard(assigner.function(x, centroids)))


@every_assigner
def test_inputs_stay_untouched_and_the_answer_the_same(assigner):
    x, centroids = rows()
    kept = x.clone(), centroids.clone()
    first, second = assigner.function(x, centroids), assigner.function(x, centroids)
    assert torch.equal(first, second)
    assert torch.equal(x, kept[0])
    assert torch.equal(centroids, kept[1])


@every_assigner
def test_permuted_rows_give_permuted_assignments(assigner):
    x, centroids = rows(torch.float64)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    straight, permuted = assigner.function(x, centroids), assigner.function(x[order], centroids)
    torch.testing.assert_close(permuted, straight[order])


@every_assigner
def test_permuted_centroids_rename_the_clusters(assigner):
    x, centroids = rows(torch.float64)
    order = torch.randperm(K, generator=torch.Generator().manual_seed(1))
    straight, permuted = assigner.function(x, centroids), assigner.function(x, centroids[order])
    assert torch.equal(order[hard(permuted)], hard(straight))


@every_assigner
@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1e4, 1e30])
def test_extreme_scales_are_assigned(assigner, scale):
    x, centroids = rows()
    assert_valid(assigner.function(x * scale, centroids * scale), N, K)


@every_assigner
@pytest.mark.parametrize("value", [0.3, -7.0])
def test_one_repeated_row_is_assigned(assigner, value):
    x = torch.full((N, D), value)
    assignment = assigner.function(x, x[:K])
    assert_valid(assignment, N, K)
    torch.testing.assert_close(assignment, assignment[:1].expand_as(assignment))


@every_assigner
def test_zero_rows_are_assigned(assigner):
    x, centroids = rows()
    x[::5] = 0
    assert_valid(assigner.function(x, centroids), N, K)


@every_assigner
def test_a_cluster_without_rows_is_allowed(assigner):
    x, centroids = rows()
    x[:] = centroids[0]
    assert_valid(assigner.function(x, centroids), N, K)


@every_assigner
def test_one_row_and_one_cluster(assigner):
    x, centroids = rows(n=1)
    assert hard(assigner.function(x, centroids[:1])).tolist() == [0]


@every_assigner
def test_fewer_rows_than_clusters(assigner):
    x, centroids = rows(n=K - 1)
    if assigner.needs_rows:
        with pytest.raises(ArgumentError, match=rf"\b{K}\b.*\b{K - 1}\b"):
            assigner.function(x, centroids)
    else:
        assert_valid(assigner.function(x, centroids), K - 1, K)


@every_assigner
def test_nan_never_passes_silently(assigner):
    x, centroids = rows()
    x[3, 1] = float("nan")
    if assigner.checks_values:
        with pytest.raises(ArgumentError, match="NaN"):
            assigner.function(x, centroids)
    else:
        codes = assigner.function(x, centroids)
        others = torch.arange(N) != 3
        assert codes[3].isnan().all()
        assert_valid(codes[others], N - 1, K)


@every_assigner
def test_the_gradient_is_exact_or_absent(assigner):
    x, centroids = rows(torch.float64, n=6)
    x.requires_grad_()
    if assigner.differentiable:
        assert torch.autograd.gradcheck(lambda x: assigner.function(x, centroids), x)
    else:
        assert not assigner.function(x, centroids).requires_grad


@every_assigner
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_devices_agree(assigner):
    x, centroids = rows()
    assignment = assigner.function(x.cuda(), centroids.cuda())
    assert assignment.device.type == "cuda"
    torch.testing.assert_close(assignment.cpu(), assigner.function(x, centroids))
