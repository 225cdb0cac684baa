"""Linear classifiers on frozen embeddings: the exact one, and the papers' training recipe."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from math import cos, inf, pi
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import ArgumentError, require, require_int
from common.evaluation.embedding import Embedded, EmbeddingScores, labelled, topk_accuracy
from common.metrics.clustering import require_labels

MOST_PRODUCTS = 200  # with the Hessian, in a step of Newton's method


class LinearProbe(NamedTuple):
    """A linear classifier: ``weight (c, d)``, ``bias (c,)``; ``converged`` if it is a minimum.

    Example:
        >>> probe = LinearProbe(torch.eye(2), torch.zeros(2), True)
        >>> probe.logits(torch.tensor([[1.0, 3.0]])).argmax(dim=1)
        tensor([1])
    """

    weight: Tensor
    bias: Tensor
    converged: bool

    def logits(self, x: Tensor) -> Tensor:
        """``(n, c)`` of ``(n, d)`` embeddings; their ``softmax`` are probabilities."""
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


def fit_linear_probe(
    x: Tensor,
    labels: Tensor,
    *,
    l2: float = 1.0,
    n_classes: int | None = None,
    max_iterations: int = 100,
    tolerance: float | None = None,
) -> LinearProbe:
    r"""Multinomial logistic regression on all samples at once, to convergence.

    .. math::
        \min_{W, b} \; \sum_i -\log \mathrm{softmax}(W x_i + b)_{y_i}
        + \tfrac{\lambda}{2} \lVert W \rVert^2

    the model of scikit-learn's ``LogisticRegression(C=1 / l2)``; with two classes, as there, the
    penalty is on the difference of their weights. Found by Newton's method, whose steps conjugate
    gradients make from products with the Hessian, in coordinates that make the curvature at zero
    that of a sphere; L-BFGS needs several times the passes over the samples and stops short of the
    minimum where classes are nearly separable. On any device, in at least float32; memory is that
    of one more copy of ``x``.

    Args:
        x: ``(n, d)`` embeddings.
        labels: ``(n,)`` integer classes.
        l2: :math:`\lambda`, at least 0; 0 has no minimum where a hyperplane separates the classes.
        n_classes: *c*; None is the largest label plus one.
        max_iterations: of Newton's method; a dozen are usual.
        tolerance: largest entry, at a minimum, of the gradient of the mean over samples, in those
            coordinates; None is 1e-8 in float64 and 1e-6 in float32.

    Returns:
        The classifier. If it has not converged, there is a warning, too.

    Raises:
        ArgumentError: an argument out of its range, lengths that differ, or values not finite.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> probe = fit_linear_probe(x, torch.tensor([0, 0, 1, 1]))
        >>> probe.logits(x).argmax(dim=1), probe.converged
        (tensor([0, 0, 1, 1]), True)
    """
    x, labels, n_classes = _checked(x, labels, n_classes)
    require(0 <= l2 < inf, "l2", l2, "at least 0, finite")
    max_iterations = require_int("max_iterations", max_iterations, 1)
    if tolerance is None:
        tolerance = 1e-8 if x.dtype == torch.float64 else 1e-6
    require(tolerance > 0, "tolerance", tolerance, "above 0")
    n = len(x)
    penalty = (2 * l2 if n_classes == 2 else l2) / n
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        mean = x.mean(dim=0)
        curvature = (x - mean).T @ (x - mean) / (n * n_classes)
        curvature.diagonal().add_(penalty)
        values, vectors = torch.linalg.eigh(curvature)
        values = values.clamp(min=float(values[-1]) * torch.finfo(x.dtype).eps or 1.0)
        basis = vectors / values.sqrt()  # (d, d)
        features = torch.cat([(x - mean) @ basis, x.new_ones(n, 1)], dim=1)  # (n, d + 1)
        ridge = torch.cat([penalty / values, values.new_zeros(1)])  # (d + 1,)
        solution, steepest = _newton(features, labels, n_classes, ridge, max_iterations, tolerance)
        weight = solution[:, :-1] @ basis.T  # (c, d)
        bias = solution[:, -1] - weight @ mean
    if steepest > tolerance:
        warnings.warn(
            f"the linear probe has not converged: gradient {steepest:.1e} above {tolerance:.1e}; "
            "raise max_iterations or l2, or pass float64",
            stacklevel=2,
        )
    return LinearProbe(weight, bias, steepest <= tolerance)


def _newton(
    features: Tensor, labels: Tensor, c: int, ridge: Tensor, max_iterations: int, tolerance: float
) -> tuple[Tensor, float]:
    """Weights ``(c, d)`` of the least mean cross-entropy plus ridge, and the gradient left there.

    Every step decreases the objective or, once that is lost in rounding, the gradient.
    """
    n = len(features)

    def objective(weight: Tensor) -> Tensor:
        loss = F.cross_entropy(features @ weight.T, labels)
        return loss + (ridge * weight.square()).sum() / 2

    weight = features.new_zeros(c, features.shape[1])
    value = objective(weight)
    rounding = 4 * torch.finfo(value.dtype).eps * value.abs()
    steepest, level = inf, False
    for _ in range(max_iterations):
        probabilities = (features @ weight.T).softmax(dim=1)  # (n, c)
        error = probabilities.clone()
        error[torch.arange(n, device=error.device), labels] -= 1
        gradient = error.T @ features / n + ridge * weight
        before, steepest = steepest, float(gradient.abs().max())
        if steepest <= tolerance or (level and steepest >= before):
            break

        def curved(direction: Tensor, p: Tensor = probabilities) -> Tensor:
            change = p * (features @ direction.T)
            change -= p * change.sum(dim=1, keepdim=True)
            return change.T @ features / n + ridge * direction

        direction = _conjugate_gradients(curved, -gradient)
        slope = float((gradient * direction).sum())
        for halvings in range(30):
            candidate = weight + direction / 2**halvings
            reached = objective(candidate)
            if reached <= value + 1e-4 * slope / 2**halvings + rounding:
                break
        else:
            break
        level = not reached < value
        weight, value = candidate, reached
    return weight, steepest


def _conjugate_gradients(product: Callable[[Tensor], Tensor], target: Tensor) -> Tensor:
    """An ``x`` with ``product(x)`` near ``target``, the nearer the shorter that is."""
    x, residual = torch.zeros_like(target), target
    direction, squared = residual, float(residual.square().sum())
    enough = squared * min(0.25, squared**0.5)
    for _ in range(MOST_PRODUCTS):
        image = product(direction)
        curvature = float((direction * image).sum())
        if curvature <= 0:  # only by rounding: the objective is convex
            break
        step = squared / curvature
        x, residual = x + step * direction, residual - step * image
        before, squared = squared, float(residual.square().sum())
        if squared <= enough:
            break
        direction = residual + squared / before * direction
    return x


def train_linear_probe(
    x: Tensor,
    labels: Tensor,
    *,
    epochs: int = 100,
    lr: float = 0.3,
    batch_size: int = 256,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
    n_classes: int | None = None,
    seed: int = 0,
) -> LinearProbe:
    """A linear layer trained by SGD with the recipe of a paper, on embeddings made once.

    The papers draw new crops in every epoch; embeddings that were made once have none. Weights
    start from N(0, 0.01), the bias from 0; the learning rate changes after an epoch.

    - SwAV: the defaults, with ``weight_decay=1e-6``.
    - MoCo: ``lr=30, milestones=[60, 80]``.
    - Temperature study: ``lr=30, milestones=[40, 60, 80], gamma=0.2``.
    - InterCLR: ``epochs=90, lr=0.01, nesterov=True, weight_decay=1e-4, milestones=[30, 60]``.

    Args:
        x: ``(n, d)`` embeddings.
        labels: ``(n,)`` integer classes.
        epochs: passes over the samples, each in a new order.
        lr: learning rate of the first epoch.
        batch_size: samples a step; the last of an epoch may have fewer.
        momentum: of SGD, as ``nesterov``.
        nesterov: Nesterov's momentum.
        weight_decay: of the weights; the bias does not decay.
        milestones: epochs at which the rate is multiplied by ``gamma``; none: half a cosine to 0.
        gamma: see ``milestones``.
        n_classes: *c*; None is the largest label plus one.
        seed: of the initial weights and the order, on the CPU, the same for any device.

    Returns:
        The classifier after the last epoch; ``converged`` is False, as nothing tells.

    Raises:
        ArgumentError: an argument out of its range, lengths that differ, or values not finite.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> probe = train_linear_probe(x, torch.tensor([0, 0, 1, 1]), lr=1.0)
        >>> probe.logits(x).argmax(dim=1)
        tensor([0, 0, 1, 1])
    """
    x, labels, n_classes = _checked(x, labels, n_classes)
    epochs = require_int("epochs", epochs, 1)
    batch_size = require_int("batch_size", batch_size, 1)
    for name, value in {"lr": lr, "weight_decay": weight_decay, "gamma": gamma}.items():
        require(0 <= value < inf, name, value, "at least 0, finite")
    require(0 <= momentum < 1, "momentum", momentum, "at least 0, below 1")
    require(not nesterov or momentum > 0, "momentum", momentum, "above 0 with nesterov")
    milestones = sorted(require_int("milestones", epoch, 1) for epoch in milestones)
    generator = torch.Generator().manual_seed(seed)
    weight = 0.01 * torch.randn(n_classes, x.shape[1], generator=generator, dtype=x.dtype)
    weight = weight.to(x.device).requires_grad_()
    bias = x.new_zeros(n_classes, requires_grad=True)
    groups = [
        {"params": [weight], "weight_decay": weight_decay},
        {"params": [bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        for epoch in range(epochs):
            passed = sum(milestone <= epoch for milestone in milestones)
            factor = gamma**passed if milestones else (1 + cos(pi * epoch / epochs)) / 2
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
            for rows in torch.randperm(len(x), generator=generator).split(batch_size):
                rows = rows.to(x.device)
                optimizer.zero_grad()
                F.cross_entropy(F.linear(x[rows], weight, bias), labels[rows]).backward()
                optimizer.step()
    return LinearProbe(weight.detach(), bias.detach(), False)


def _checked(x: Tensor, labels: Tensor, n_classes: int | None) -> tuple[Tensor, Tensor, int]:
    if n_classes is not None:
        n_classes = require_int("n_classes", n_classes, 2)
    require_labels("labels", labels, n_classes)
    if x.ndim != 2 or len(x) != len(labels):
        raise ArgumentError(
            f"x and labels must be (n, d) and (n,), got {tuple(x.shape)} and {tuple(labels.shape)}"
        )
    if not x.isfinite().all():
        raise ArgumentError("x must be finite, got NaN or infinity")
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    if n_classes is None:
        n_classes = int(labels.max()) + 1
        require(n_classes >= 2, "labels", "one class", "of at least two classes")
    return x, labels.to(x.device).long(), n_classes


class LinearProbeScores(EmbeddingScores):
    """Accuracy of a linear classifier, fitted on the first loader, scored on the last.

    Args:
        recipe: ``"exact"`` is :func:`fit_linear_probe`, ``"sgd"`` :func:`train_linear_probe`.
        options: keyword arguments of the recipe, such as ``{"l2": 0.1}``.
        standardize: give each feature mean 0 and variance 1 over the first loader.
        loaders: two, see :class:`~common.evaluation.embedding.EmbeddingScores`, as for the rest,
            the batches and the distributed behaviour.
        every_n_epochs: epochs between scores.
        name: of the scores in the log.

    Logged: ``probe/top1``, and ``probe/top5`` with more than five classes.

    Example:
        >>> LinearProbeScores("sgd", {"lr": 30.0, "milestones": [60, 80]}).history
        []
    """

    def __init__(
        self,
        recipe: Literal["exact", "sgd"] = "exact",
        options: dict[str, Any] | None = None,
        standardize: bool = False,
        loaders: Sequence[Iterable[Any]] | None = None,
        every_n_epochs: int = 1,
        name: str = "probe",
    ):
        super().__init__(loaders, every_n_epochs, name)
        require(recipe in ("exact", "sgd"), "recipe", recipe, "'exact' or 'sgd'")
        self.recipe = recipe
        self.options = dict(options or {})
        self.standardize = standardize

    def score(self, fitted_on: Embedded | None, scored: Embedded) -> dict[str, float]:
        x, y = labelled(fitted_on, "first")
        queries, labels = labelled(scored, "last")
        if self.standardize:
            mean, scale = x.mean(dim=0), x.std(dim=0, correction=0).clamp(min=1e-12)
            x, queries = (x - mean) / scale, (queries - mean) / scale
        fit: Any = fit_linear_probe if self.recipe == "exact" else train_linear_probe
        n_classes = max(int(y.max()), int(labels.max())) + 1
        probe = fit(x, y, **{"n_classes": n_classes, **self.options})
        return topk_accuracy(probe.logits(queries), labels)
