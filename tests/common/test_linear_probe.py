import warnings

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy

from common.errors import ArgumentError
from common.evaluation import fit_linear_probe, train_linear_probe


def digits(classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits(n_class=classes)
    return torch.from_numpy(data.data)[:600], torch.from_numpy(data.target)[:600].long()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("classes", "l2"), [(10, 1.0), (10, 100.0), (2, 1.0), (2, 0.05)])
def test_probabilities_equal_scikit_learns(classes, l2, dtype):
    x, y = digits(classes)
    reference = LogisticRegression(C=1 / l2, solver="newton-cholesky", tol=1e-10, max_iter=200)
    expected = torch.from_numpy(reference.fit(x.numpy(), y.numpy()).predict_proba(x.numpy()))
    probe = fit_linear_probe(x.to(dtype), y, l2=l2)
    assert probe.converged
    assert probe.weight.dtype == dtype
    found = probe.logits(x).double().softmax(dim=1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_weights_equal_scikit_learns():
    x, y = digits()
    reference = LogisticRegression(solver="newton-cholesky", tol=1e-10).fit(x.numpy(), y.numpy())
    probe = fit_linear_probe(x, y)
    torch.testing.assert_close(probe.weight, torch.from_numpy(reference.coef_), atol=1e-4, rtol=0)
    bias = torch.from_numpy(reference.intercept_)
    torch.testing.assert_close(
        probe.bias - probe.bias.mean(), bias - bias.mean(), atol=1e-4, rtol=0
    )


def test_more_features_than_samples_far_from_the_origin_one_of_them_constant():
    x = torch.randn(30, 60, dtype=torch.float64) * torch.logspace(-3, 3, 60) + 1e4
    x[:, 0] = 5.0
    y = torch.randint(3, (30,))
    probe = fit_linear_probe(x, y)
    assert probe.converged
    weight, bias = probe.weight.requires_grad_(), probe.bias.requires_grad_()
    loss = cross_entropy(x @ weight.T + bias, y, reduction="sum") + weight.square().sum() / 2
    grad, grad_bias = torch.autograd.grad(loss, (weight, bias))
    # In features shifted to their mean, where the bias is another, nothing is left.
    assert (grad - grad_bias[:, None] * x.mean(dim=0)).abs().max() < 1e-3
    assert grad_bias.abs().max() < 1e-5


def test_an_unfinished_fit_says_so():
    x, y = digits()
    with pytest.warns(UserWarning, match="has not converged: gradient"):
        probe = fit_linear_probe(x, y, max_iterations=2)
    assert not probe.converged


def test_separable_classes_without_penalty_end():
    x = torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        probe = fit_linear_probe(x, torch.tensor([0, 0, 1, 1]), l2=0.0)
    assert probe.weight.isfinite().all()
    assert probe.logits(x).argmax(dim=1).tolist() == [0, 0, 1, 1]


def by_hand(x, y, epochs, rates, seed, batch_size, decay, momentum):
    """The recipe with its own arithmetic: softmax gradients, buffers and rates written out."""
    generator = torch.Generator().manual_seed(seed)
    weight = 0.01 * torch.randn(3, x.shape[1], generator=generator, dtype=x.dtype)
    bias = torch.zeros(3, dtype=x.dtype)
    speed, bias_speed = torch.zeros_like(weight), torch.zeros_like(bias)
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for start in range(0, len(x), batch_size):
            rows = order[start : start + batch_size]
            error = (x[rows] @ weight.T + bias).softmax(dim=1)
            error[torch.arange(len(rows)), y[rows]] -= 1
            speed = momentum * speed + error.T @ x[rows] / len(rows) + decay * weight
            bias_speed = momentum * bias_speed + error.mean(dim=0)
            weight, bias = weight - rates[epoch] * speed, bias - rates[epoch] * bias_speed
    return weight, bias


@pytest.mark.parametrize("milestones", [(), (2, 3)])
def test_the_sgd_recipe_step_by_step(milestones):
    x, y = torch.randn(25, 4, dtype=torch.float64), torch.randint(3, (25,))
    rates = [0.5, 0.5, 0.1, 0.02] if milestones else [0.5, 0.4268, 0.25, 0.0732]
    probe = train_linear_probe(
        x, y, epochs=4, lr=0.5, batch_size=10, weight_decay=0.1, milestones=milestones,
        gamma=0.2, n_classes=3, seed=7,
    )  # fmt: skip
    weight, bias = by_hand(x, y, 4, rates, 7, 10, 0.1, 0.9)
    torch.testing.assert_close(probe.weight, weight, atol=2e-4, rtol=0)
    torch.testing.assert_close(probe.bias, bias, atol=2e-4, rtol=0)


def test_the_sgd_recipe_learns_digits_and_repeats_itself():
    x, y = digits()
    probe = train_linear_probe(x / 16, y, epochs=20)
    assert (probe.logits(x / 16).argmax(dim=1) == y).double().mean() > 0.95
    again = train_linear_probe(x / 16, y, epochs=20)
    assert torch.equal(probe.weight, again.weight)


def test_wrong_arguments_are_named():
    x, y = torch.randn(6, 2), torch.arange(6)
    for fit, options, words in (
        (fit_linear_probe, {"l2": -1.0}, "l2 must be"),
        (fit_linear_probe, {"n_classes": 3}, "labels"),
        (fit_linear_probe, {"tolerance": 0.0}, "tolerance"),
        (train_linear_probe, {"epochs": 0}, "epochs"),
        (train_linear_probe, {"momentum": 1.0}, "momentum"),
        (train_linear_probe, {"nesterov": True, "momentum": 0.0}, "momentum must be above 0"),
        (train_linear_probe, {"milestones": [0]}, "milestones"),
    ):
        with pytest.raises(ArgumentError, match=words):
            fit(x, y, **options)
    with pytest.raises(ArgumentError, match=r"\(6, 2\) and \(5,\)"):
        fit_linear_probe(x, y[:5])
    with pytest.raises(ArgumentError, match="two classes"):
        fit_linear_probe(x, torch.zeros(6, dtype=torch.int64))
    x[0, 0] = float("inf")
    with pytest.raises(ArgumentError, match="finite"):
        train_linear_probe(x, y)
