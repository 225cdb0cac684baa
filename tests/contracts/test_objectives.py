"""The checks every objective passes. A new one joins by one line in ``OBJECTIVES``."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from common.adjacency import cumulative_power, row_normalized_adjacency
from common.losses import (
    block_contrast,
    neighbor_contrast,
    self_training_loss,
    student_t_log_assignment,
)

N, D, K = 24, 6, 3


def ring_weights(n: int) -> Tensor:
    ring = torch.stack([torch.arange(n), torch.arange(1, n + 1) % n])
    return cumulative_power(row_normalized_adjacency(ring, n), 2)


def contrast_with_ring(z: Tensor) -> Tensor:
    return neighbor_contrast(z, ring_weights(len(z)).to(z.device), inverse_temperature=0.5)


def block_contrast_with_ring(z: Tensor) -> Tensor:
    clusters = torch.arange(len(z), device=z.device) * K // len(z)
    return block_contrast(z, ring_weights(len(z)).to(z.device), clusters, K)


def self_training_to_corners(z: Tensor) -> Tensor:
    corners = torch.eye(K, z.shape[1], dtype=z.dtype, device=z.device)
    log_q = student_t_log_assignment(z, corners)
    fixed = torch.eye(K, dtype=log_q.dtype, device=z.device)[torch.arange(len(z)) % K]
    return self_training_loss(log_q, 0.9 * fixed + 0.1 / K)


def embeddings(dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, D, generator=generator, dtype=torch.float64).to(dtype)


@dataclass(frozen=True)
class Objective:
    """An objective as a function of the embeddings alone, and what it promises."""

    function: Callable[[Tensor], Tensor]
    scale_invariant: bool  # to one positive factor on all embeddings


OBJECTIVES = {
    "neighbor_contrast": Objective(contrast_with_ring, scale_invariant=True),
    "block_contrast": Objective(block_contrast_with_ring, scale_invariant=True),
    "self_training": Objective(self_training_to_corners, scale_invariant=False),
}

every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())


def value_and_gradient(objective: Objective, z: Tensor) -> tuple[Tensor, Tensor]:
    z = z.clone().requires_grad_()
    loss = objective.function(z)
    return loss.detach(), torch.autograd.grad(loss, z)[0]


@every_objective
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_scalar_in_at_least_float32(objective, dtype):
    loss, grad = value_and_gradient(objective, embeddings(dtype))
    assert loss.shape == ()
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert grad.dtype == dtype
    reference, _ = value_and_gradient(objective, embeddings(torch.float64))
    precision = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 2e-2)
    assert loss.item() == pytest.approx(reference.item(), rel=precision)


@every_objective
def test_autocast_changes_nothing(objective):
    plain = value_and_gradient(objective, embeddings())
    z = embeddings().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective.function(z)
    torch.testing.assert_close((loss.detach(), torch.autograd.grad(loss, z)[0]), plain)


@every_objective
def test_backward_inside_autocast_stays_close(objective):
    _, plain = value_and_gradient(objective, embeddings())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, mixed = value_and_gradient(objective, embeddings())
    torch.testing.assert_close(mixed, plain, rtol=2e-2, atol=2e-2 * plain.abs().max().item())


@every_objective
def test_gradient_against_finite_differences(objective):
    z = embeddings(torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(objective.function, (z,))


@every_objective
@pytest.mark.parametrize(
    "z",
    [
        torch.zeros(N, D),
        torch.ones(N, D),
        torch.full((N, D), 1e30),
        torch.full((N, D), 1e-30),
        torch.cat([torch.zeros(1, D), embeddings()[1:] * 1e30]),
        torch.cat([torch.zeros(1, D), embeddings()[1:] * 1e-30]),
    ],
    ids=["zeros", "duplicates", "huge", "tiny", "huge-and-zero", "tiny-and-zero"],
)
def test_extreme_inputs_stay_finite(objective, z):
    loss, grad = value_and_gradient(objective, z)
    assert loss.isfinite()
    assert grad.isfinite().all()


@every_objective
def test_scale_invariance_where_promised(objective):
    loss, _ = value_and_gradient(objective, embeddings(torch.float64))
    scaled, _ = value_and_gradient(objective, 3 * embeddings(torch.float64))
    assert (abs(loss - scaled).item() < 1e-12) == objective.scale_invariant


@every_objective
def test_same_input_same_bits(objective):
    first, second = (value_and_gradient(objective, embeddings()) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@every_objective
def test_input_is_not_modified(objective):
    z = embeddings()
    before = z.clone()
    value_and_gradient(objective, z)
    assert torch.equal(z, before)


@every_objective
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu(objective):
    on_cpu = value_and_gradient(objective, embeddings(torch.float64))
    on_gpu = value_and_gradient(objective, embeddings(torch.float64).cuda())
    torch.testing.assert_close([part.cpu() for part in on_gpu], list(on_cpu))
