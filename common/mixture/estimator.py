r"""Gaussian mixtures by expectation maximisation, all labels unknown or some of them known.

.. math:: p(x) = \sum_j \pi_j \, \mathcal{N}(x \mid \mu_j, \Sigma_j)

The E-step computes responsibilities :math:`r_{ij} = p(j \mid x_i)` in log space, the M-step the
weights, means and covariances of the rows so weighted, in turn until the likelihood rests.
"""

import math
from collections.abc import Iterator
from functools import partial
from operator import attrgetter
from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import ArgumentError, require, require_int
from common.kmeans import KMeans
from common.mixture.components import Components, Covariance, Frame, expect, log_joint, maximise


class GaussianMixture:
    """Mixture of Gaussians fitted to the rows of a tensor, on the tensor's device.

    float16 and bfloat16 come in and float32 is computed with; float64 stays float64. Autocast is
    switched off inside. Besides the ``(n, k)`` responsibilities, rows are worked on in blocks.

    Distributed: each rank fits the rows it was given; nothing is communicated.

    Args:
        n_clusters: *k*.
        covariance: ``"full"`` or ``"diag"``.
        init: of the k-means that gives the first responsibilities: ``"k-means++"``, ``"random"`` or
            the ``(k, d)`` centroids to start it from.
        n_init: restarts, of which the one of the highest likelihood is kept; given centroids are
            run once.
        max_iter: limit of the rounds of one restart.
        tol: a restart ends after the round whose log-likelihood, mean over the rows, differs from
            that of the round before by less.
        regularization: added to all variances, in squared units of the rows, and with it a few
            roundings of the variances.
        seed: of the draws; None takes one from torch's global generator.
        memory_budget: bytes for a block of ``(rows, k, d)`` differences. None: 4 MiB on the CPU,
            where a block then stays in the cache, and 256 MiB elsewhere.

    Attributes:
        weights: ``(k,)``, sum to 1.
        means: ``(k, d)``. A component that loses all its rows keeps its mean and gets weight 0.
        covariances: ``(k, d, d)``, or their diagonals ``(k, d)``.
        log_likelihood: mean over the rows of :math:`\\log p(x)`, and for a row of known label of
            :math:`\\log p(x, j)`, under the final parameters.
        n_iter: rounds of the restart that was kept.
        converged: whether it came to rest before ``max_iter``.

    Raises:
        ArgumentError: an argument out of its range, here or in :meth:`fit`; rows that are not
            finite; more clusters than rows; a covariance that is singular in spite of the
            regularization.

    Source:
        Dempster, Laird and Rubin, Maximum likelihood from incomplete data via the EM algorithm,
        1977; known labels as in Nigam et al., Machine Learning 2000.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [10.0], [12.0]])
        >>> mixture = GaussianMixture(2, init=x[1:3], regularization=0).fit(x)
        >>> mixture.means.flatten(), mixture.covariances.flatten()
        (tensor([ 0.5000, 11.0000]), tensor([0.2500, 1.0000]))
        >>> mixture.responsibilities(torch.tensor([[4.0]]))
        tensor([[0.6667, 0.3333]])
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor
    log_likelihood: float
    n_iter: int
    converged: bool

    def __init__(
        self,
        n_clusters: int,
        *,
        covariance: Covariance = "full",
        init: Literal["k-means++", "random"] | Tensor = "k-means++",
        n_init: int = 1,
        max_iter: int = 100,
        tol: float = 1e-3,
        regularization: float = 1e-6,
        seed: int | None = None,
        memory_budget: int | None = None,
    ):
        require(covariance in ("full", "diag"), "covariance", covariance, "full or diag")
        require(tol >= 0, "tol", tol, "at least 0")
        require(regularization >= 0, "regularization", regularization, "at least 0")
        KMeans(n_clusters, init=init)  # checks both
        self.n_clusters = n_clusters
        self.covariance = covariance
        self.init = init
        self.n_init = require_int("n_init", n_init, 1)
        self.max_iter = require_int("max_iter", max_iter, 1)
        self.tol = tol
        self.regularization = regularization
        self.seed = seed
        if memory_budget is not None:
            memory_budget = require_int("memory_budget", memory_budget, 1)
        self.memory_budget = memory_budget

    @torch.no_grad()
    def fit(self, x: Tensor, known: Tensor | None = None) -> Self:
        """Fits ``(n, d)`` rows, of which some may be known to belong to a component.

        Args:
            x: ``(n, d)``.
            known: ``(n,)`` integers, the component of each row or -1. A known row has all its
                responsibility there, from the start on. A drawn start is renamed so that components
                lie nearest to the rows known to be theirs.
        """
        _require_rows(x)
        if known is not None:
            known = self._checked_labels(known, x)
        with torch.autocast(x.device.type, enabled=False):
            frame = Frame(x)
            rows = frame.inwards(x)
            starts = self._starts(frame, x, rows, known)
            fitted = [self._climb(frame, rows, known, *start) for start in starts]
            best = max(fitted, key=attrgetter("log_likelihood"))
            self._frame, self._components = frame, best.components
            self.weights = best.components.weights
            self.means = frame.outwards(best.components.means)
            self.covariances = best.components.covariances * frame.scale * frame.scale
        self.log_likelihood = best.log_likelihood - frame.log_volume
        self.n_iter, self.converged = best.n_iter, best.converged
        return self

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density ``(n,)`` of ``(n, d)`` rows."""
        return self._log_joint(x).logsumexp(dim=1) - self._frame.log_volume

    @torch.no_grad()
    def responsibilities(self, x: Tensor) -> Tensor:
        """Probability ``(n, k)`` of each component given the row; rows sum to 1."""
        return self._log_joint(x).softmax(dim=1)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Component ``(n,)`` of the highest probability given the row."""
        return self._log_joint(x).argmax(dim=1)

    def fit_predict(self, x: Tensor, known: Tensor | None = None) -> Tensor:
        """:meth:`fit`, then :meth:`predict` of the same rows."""
        return self.fit(x, known).predict(x)

    @torch.no_grad()
    def sample(self, n: int, *, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Draws ``(n, d)`` rows and the component ``(n,)`` of each."""
        self._require_fit()
        weights, means = self._components.weights, self._components.means
        seed = seed if seed is not None else int(torch.randint(2**63 - 1, ()))
        generator = torch.Generator().manual_seed(seed)
        labels = weights.cpu().multinomial(n, replacement=True, generator=generator)
        noise = torch.randn(n, means.shape[1], generator=generator, dtype=means.dtype)
        labels, rows = labels.to(means.device), noise.to(means.device)
        for j, factor in enumerate(self._components.factors):
            own = labels == j
            spread = rows[own] @ factor.T if factor.ndim == 2 else rows[own] * factor
            rows[own] = means[j] + spread
        return self._frame.outwards(rows), labels

    def _log_joint(self, x: Tensor) -> Tensor:
        self._require_fit()
        _require_rows(x, self.means.shape[1])
        with torch.autocast(x.device.type, enabled=False):
            rows = self._frame.inwards(x)
            return log_joint(rows, self._components, self._block_size(rows))

    def _require_fit(self) -> None:
        if not hasattr(self, "means"):
            raise ArgumentError("the mixture has no components yet: call fit first")

    def _block_size(self, x: Tensor) -> int:
        budget = self.memory_budget or (4 if x.device.type == "cpu" else 256) * 2**20
        return max(1, budget // (x.element_size() * self.n_clusters * x.shape[1]))

    def _checked_labels(self, known: Tensor, x: Tensor) -> Tensor:
        fits = known.shape == x.shape[:1] and not known.is_floating_point()
        require(fits, "known", (known.dtype, *known.shape), f"{len(x)} integers, one a row of x")
        lowest, highest = int(known.min()), int(known.max())
        within = lowest >= -1 and highest < self.n_clusters
        expected = f"-1 or from 0 to {self.n_clusters - 1}"
        require(within, "known", highest if lowest >= -1 else lowest, expected)
        return known.to(x.device, torch.int64)

    def _starts(
        self, frame: Frame, x: Tensor, rows: Tensor, known: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """First labels ``(n,)`` and means ``(k, d)`` of each restart."""
        drawn = isinstance(self.init, str)
        seed = self.seed if self.seed is not None or not drawn else int(torch.randint(2**62, ()))
        generator = torch.Generator().manual_seed(seed or 0)
        seeds = torch.randint(2**62, (self.n_init if drawn else 1,), generator=generator)
        for seed in seeds.tolist():
            kmeans = KMeans(self.n_clusters, init=self.init, seed=seed).fit(x)
            labels, means = kmeans.labels, frame.inwards(kmeans.centroids)
            if known is not None and drawn:
                names = _names(means, rows, known)
                labels, means = names[labels], means[names.argsort()]
            if known is not None:
                labels = torch.where(known >= 0, known, labels)
            yield labels, means

    def _climb(
        self, frame: Frame, x: Tensor, known: Tensor | None, labels: Tensor, means: Tensor
    ) -> "_Fit":
        """The steps in turn, from hard labels; ``means`` are those of clusters without rows."""
        block = self._block_size(x)
        expected = partial(expect, x, known=known, block=block)
        maximised = partial(
            maximise,
            x,
            covariance=self.covariance,
            regularization=self.regularization / frame.scale / frame.scale,
            block=block,
        )
        components = maximised(F.one_hot(labels, self.n_clusters).to(x), means)
        before, converged, n_iter = -math.inf, False, 0
        while n_iter < self.max_iter and not converged:
            likelihood, responsibilities = expected(components)
            components = maximised(responsibilities, components.means)
            converged = abs(likelihood - before) < self.tol
            before, n_iter = likelihood, n_iter + 1
        return _Fit(components, expected(components)[0], n_iter, converged)


class _Fit(NamedTuple):
    components: Components
    log_likelihood: float
    n_iter: int
    converged: bool


def _names(means: Tensor, x: Tensor, known: Tensor) -> Tensor:
    """New numbers ``(k,)`` of components, such that those of known rows lie nearest to the rows.

    The sum over known rows of the squared distance to the mean of their component is least.
    """
    from scipy.optimize import linear_sum_assignment

    k = len(means)
    labelled = known >= 0
    mass = F.one_hot(known[labelled], k).to(x)  # (l, k)
    size = mass.sum(dim=0)[:, None]
    centres = mass.T @ x[labelled] / size.clamp_min(1)
    cost = size * torch.cdist(centres, means).square()  # (k, k), 0 for classes without rows
    classes, components = linear_sum_assignment(cost.cpu().numpy())
    names = torch.empty(k, dtype=torch.int64)
    names[torch.from_numpy(components)] = torch.from_numpy(classes)
    return names.to(x.device)


def _require_rows(x: Tensor, d: int | None = None) -> None:
    """Raises ArgumentError unless ``x`` is ``(n, d)`` finite floating-point numbers."""
    if x.ndim != 2 or not x.numel() or not x.is_floating_point() or d not in (None, x.shape[1]):
        raise ArgumentError(
            f"x must be (n, {d or 'd'}) floating-point rows, got {x.dtype} {tuple(x.shape)}"
        )
    if not x.isfinite().all():
        raise ArgumentError("x must be finite, got NaN or infinity")
