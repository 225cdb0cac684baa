"""The checks every objective passes. A new one joins by one line in ``objectives.py``."""

import pytest
import torch
from torch import Tensor

from common.errors import ArgumentError
from tests.contracts.objectives import OBJECTIVES, D, N, Objective, gradient_on_rank, normal
from tests.ranks import on_ranks

every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())


def embeddings(dtype: torch.dtype = torch.float32) -> Tensor:
    return normal(N, D, dtype)


def evaluate(objective: Objective, z: Tensor) -> Tensor:
    return objective.function(z, torch.arange(len(z), device=z.device), False)


def value_and_gradient(objective: Objective, z: Tensor) -> tuple[Tensor, Tensor]:
    z = z.clone().requires_grad_()
    loss = evaluate(objective, z)
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
        loss = evaluate(objective, z)
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
    assert torch.autograd.gradcheck(lambda z: evaluate(objective, z), (z,))


@every_objective
def test_a_second_derivative_is_exact_or_refused(objective):
    z = embeddings(torch.float64).requires_grad_()
    direction = embeddings(torch.float64).flip(0)
    (gradient,) = torch.autograd.grad(evaluate(objective, z), z, create_graph=True)
    try:
        (found,) = torch.autograd.grad((gradient * direction).sum(), z)
    except RuntimeError as refusal:
        if "no second derivative" not in str(refusal):
            raise
        return
    step = 1e-6 * direction
    ahead, behind = (value_and_gradient(objective, z.detach() + s)[1] for s in (step, -step))
    torch.testing.assert_close(found, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-7)


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
def test_order_of_the_samples_does_not_matter(objective):
    z = embeddings(torch.float64).requires_grad_()
    order = torch.randperm(N)
    straight = evaluate(objective, z)
    permuted = objective.function(z[order], order, False)
    torch.testing.assert_close(permuted, straight, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(permuted, z), torch.autograd.grad(straight, z), rtol=1e-9, atol=1e-12
    )


@every_objective
def test_one_sample_is_evaluated_or_refused(objective):
    z = embeddings()[:1]
    if objective.fewest == 1:
        loss, grad = value_and_gradient(objective, z)
        assert loss.isfinite()
        assert grad.isfinite().all()
    else:
        with pytest.raises(ArgumentError, match=f"must be at least {objective.fewest} rows"):
            evaluate(objective, z)


@every_objective
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_no_number_never_passes_silently(objective, value):
    z = embeddings()
    z[3, 1] = value
    assert not evaluate(objective, z).isfinite()


def test_two_processes_agree_with_one(tmp_path):
    alone, ranks = gradient_on_rank(), on_ranks(gradient_on_rank, tmp_path)
    for name, (value, gradient) in alone.items():
        average = torch.stack([result[name][0] for result in ranks]).mean()
        torch.testing.assert_close(average, value, rtol=1e-12, atol=0, msg=name)
        for result in ranks:
            torch.testing.assert_close(result[name][1], gradient, rtol=1e-9, atol=1e-12, msg=name)


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
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu(objective, dtype):
    on_cpu = value_and_gradient(objective, embeddings(dtype))
    on_gpu = value_and_gradient(objective, embeddings(dtype).cuda())
    torch.testing.assert_close([part.cpu() for part in on_gpu], list(on_cpu))
