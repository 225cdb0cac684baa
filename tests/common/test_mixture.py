"""Mixtures against scikit-learn and slow references in NumPy, float64."""

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, multivariate_t
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture as ReferenceMixture
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.errors import ArgumentError
from common.kmeans import KMeans
from common.mixture import GaussianMixture, NormalInverseWishart, log_split_ratio

every_covariance = pytest.mark.parametrize("covariance", ["full", "diag"])


def blobs(n: int = 90, d: int = 3, k: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Overlapping clusters of different shape, and the cluster of each row."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.arange(n) % k
    centres = 2 * torch.randn(k, d, generator=generator, dtype=torch.float64)
    shapes = torch.randn(k, d, d, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, 1, d, generator=generator, dtype=torch.float64)
    return centres[own] + (noise @ shapes[own])[:, 0], own


def slow_parameters(x: np.ndarray, r: np.ndarray, covariance: str, added: float):
    """Weights, means and covariance matrices, one component and one row at a time."""
    n, d = x.shape
    weights, means, matrices = [], [], []
    for shares in r.T:
        mass = shares.sum()
        mean = sum(s * row for s, row in zip(shares, x, strict=True)) / mass
        matrix = sum(s * np.outer(row - mean, row - mean) for s, row in zip(shares, x, strict=True))
        matrix = matrix / mass + added * np.eye(d)
        weights.append(mass / n)
        means.append(mean)
        matrices.append(np.diag(np.diag(matrix)) if covariance == "diag" else matrix)
    return weights, means, matrices


def slow_mixture(
    x: np.ndarray, labels: np.ndarray, k: int, covariance: str, rounds: int, known: np.ndarray
):
    """EM from labels; gives parameters, log-likelihood and responsibilities under them."""
    r = np.eye(k)[labels]
    for _ in range(rounds + 1):
        weights, means, matrices = slow_parameters(x, r, covariance, 1e-3)
        joint = np.array(
            [
                [
                    math.log(weights[j]) + multivariate_normal.logpdf(row, means[j], matrices[j])
                    if known[i] in (-1, j)
                    else -math.inf
                    for j in range(k)
                ]
                for i, row in enumerate(x)
            ]
        )
        density = logsumexp(joint, axis=1)
        r = np.exp(joint - density[:, None])
    return weights, means, matrices, density.mean(), r


@every_covariance
@pytest.mark.parametrize("labelled", [False, True])
def test_equals_the_slow_form(covariance, labelled):
    x, own = blobs()
    known = torch.where((torch.arange(len(x)) % 4 == 0) & (own < 2), own, -1)
    known = known if labelled else torch.full_like(known, -1)
    start = x[:3]
    labels = KMeans(3, init=start).fit(x).labels
    labels = torch.where(known >= 0, known, labels)
    expected = slow_mixture(x.numpy(), labels.numpy(), 3, covariance, 5, known.numpy())
    weights, means, matrices, likelihood, r = expected

    mixture = GaussianMixture(
        3, covariance=covariance, init=start, max_iter=5, tol=0, regularization=1e-3
    )
    mixture.fit(x, known if labelled else None)
    assert mixture.n_iter == 5
    assert not mixture.converged
    close = {"rtol": 1e-9, "atol": 1e-9}
    np.testing.assert_allclose(mixture.weights, weights, **close)
    np.testing.assert_allclose(mixture.means, means, **close)
    diagonals = [np.diag(m) for m in matrices]
    np.testing.assert_allclose(
        mixture.covariances, diagonals if covariance == "diag" else matrices, **close
    )
    assert mixture.log_likelihood == pytest.approx(likelihood, abs=1e-9)
    unlabelled = (known < 0).numpy()
    np.testing.assert_allclose(mixture.responsibilities(x)[unlabelled], r[unlabelled], **close)
    assert torch.equal(mixture.predict(x), mixture.responsibilities(x).argmax(dim=1))


@every_covariance
def test_equals_scikit_learns_from_the_same_start(covariance):
    x = torch.from_numpy(load_digits().data)[:, ::4] / 16
    start = x[::180][:10]
    r = np.eye(10)[KMeans(10, init=start).fit(x).labels.numpy()]
    mass = r.sum(axis=0)
    means = r.T @ x.numpy() / mass[:, None]
    spread = [np.cov(x.numpy().T, aweights=own, bias=True) + 1e-3 * np.eye(16) for own in r.T]
    spread = [np.diag(m) for m in spread] if covariance == "diag" else spread
    precision = [1 / m if covariance == "diag" else np.linalg.inv(m) for m in spread]
    reference = ReferenceMixture(
        10,
        covariance_type=covariance,
        weights_init=mass / len(x),
        means_init=means,
        precisions_init=precision,
        reg_covar=1e-3,
        tol=1e-4,
        max_iter=40,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference.fit(x.numpy())
    mixture = GaussianMixture(
        10, covariance=covariance, init=start, regularization=1e-3, tol=1e-4, max_iter=40
    ).fit(x)
    assert mixture.n_iter == reference.n_iter_
    assert mixture.converged == reference.converged_
    close = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(mixture.means, reference.means_, **close)
    np.testing.assert_allclose(mixture.covariances, reference.covariances_, **close)
    np.testing.assert_allclose(mixture.weights, reference.weights_, **close)
    np.testing.assert_allclose(mixture.log_prob(x), reference.score_samples(x.numpy()), **close)
    np.testing.assert_allclose(
        mixture.responsibilities(x), reference.predict_proba(x.numpy()), **close
    )
    assert mixture.log_likelihood == pytest.approx(reference.score(x.numpy()), abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.sampled_from(["full", "diag"]),
    st.booleans(),
)
def test_the_likelihood_never_decreases(seed, k, covariance, labelled):
    x, own = blobs(n=24, d=2, k=4, seed=seed)
    known = torch.where(torch.arange(24) % 5 == 0, own % k, -1) if labelled else None
    likelihoods = [
        GaussianMixture(
            k, covariance=covariance, init=x[:k], max_iter=rounds, tol=0, regularization=0
        )
        .fit(x, known)
        .log_likelihood
        for rounds in (1, 2, 3, 5, 9)
    ]
    for before, after in pairwise(likelihoods):
        assert after >= before - 1e-9


def test_the_first_round_never_stops():
    x = torch.tensor([[0.0], [0.1], [5.0], [5.1]]).double()
    mixture = GaussianMixture(2, init=x[1:3], tol=1e9).fit(x)
    assert mixture.n_iter == 2
    assert mixture.converged


# Known labels


@pytest.mark.parametrize("seed", range(3))
def test_components_take_the_numbers_of_the_known_classes(seed):
    generator = torch.Generator().manual_seed(seed)
    own = torch.randint(4, (200,), generator=generator)
    x = torch.eye(4)[own] * 5 + torch.randn(200, 4, generator=generator)
    known = torch.where((torch.rand(200, generator=generator) < 0.2) & (own < 3), own, -1)
    labels = GaussianMixture(4, covariance="diag", n_init=3, seed=seed).fit(x, known).predict(x)
    assert (labels == own).double().mean() > 0.95  # 3 is the one that is left for the new class


def test_known_rows_hold_a_component_where_it_would_not_go():
    x = torch.cat([torch.randn(50, 1), torch.randn(50, 1) + 8]).double()
    known = torch.full((100,), -1)
    known[:2] = 1
    known[50:52] = 0
    mixture = GaussianMixture(2, init=torch.tensor([[0.0], [8.0]])).fit(x, known)
    free = GaussianMixture(2, init=torch.tensor([[0.0], [8.0]])).fit(x)
    assert free.means[1] - free.means[0] > 7.5
    assert mixture.covariances.max() > 2  # each component stretches to its known rows


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (torch.tensor([-2, 0, 0, 0]), "known .*-2"),
        (torch.tensor([-1, 0, 2, 0]), r"known .*from 0 to 1.*2"),
        (torch.tensor([0, 1, 0]), "known .*4 integers"),
        (torch.zeros(4), "known .*4 integers"),
    ],
)
def test_wrong_known_labels_name_themselves(known, message):
    with pytest.raises(ArgumentError, match=message):
        GaussianMixture(2).fit(torch.randn(4, 2), known)


# Extremes


@every_covariance
@pytest.mark.parametrize("scale", [1e-12, 1e12, 1e30])
def test_units_do_not_matter_without_regularization(covariance, scale):
    x, _ = blobs()
    options = {"covariance": covariance, "max_iter": 10, "tol": 0, "regularization": 0}
    plain = GaussianMixture(3, init=x[:3], **options).fit(x)
    scaled = GaussianMixture(3, init=x[:3] * scale, **options).fit(x * scale)
    expected = plain.responsibilities(x)
    torch.testing.assert_close(scaled.responsibilities(x * scale), expected, rtol=0, atol=1e-6)
    shift = x.shape[1] * math.log(scale)
    assert scaled.log_likelihood == pytest.approx(plain.log_likelihood - shift, abs=1e-6)
    torch.testing.assert_close(scaled.log_prob(x * scale), plain.log_prob(x) - shift)
    torch.testing.assert_close(scaled.means / scale, plain.means)


@every_covariance
def test_float32_far_from_the_origin_keeps_its_precision(covariance):
    x, _ = blobs()
    far = (x + 1000).float()
    mixture = GaussianMixture(3, covariance=covariance, init=far[:3], max_iter=10, tol=0).fit(far)
    exact = far.double()
    expected = GaussianMixture(3, covariance=covariance, init=exact[:3], max_iter=10, tol=0)
    expected.fit(exact)
    assert mixture.means.dtype == torch.float32
    torch.testing.assert_close(
        mixture.covariances.double(), expected.covariances, rtol=0, atol=1e-3
    )


@every_covariance
@pytest.mark.parametrize("regularization", [0.0, 1e-6])
def test_duplicated_rows_and_components_without_rows(covariance, regularization):
    x = torch.tensor([[1.0, 2.0]] * 5 + [[3.0, 4.0]] * 5)
    mixture = GaussianMixture(
        3, covariance=covariance, init=x[[0, 5, 5]], regularization=regularization
    ).fit(x)
    assert sorted(mixture.weights.tolist()) == [0, 0.5, 0.5]
    assert mixture.predict(x).tolist() == [0] * 5 + [int(mixture.predict(x)[5])] * 5
    assert mixture.means.isfinite().all()
    assert math.isfinite(mixture.log_likelihood)


def test_more_clusters_than_rows_are_refused():
    with pytest.raises(ArgumentError, match=r"n_clusters.*n_clusters=5.*n=4"):
        GaussianMixture(5).fit(torch.randn(4, 2))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_refused(value):
    x = torch.randn(6, 2)
    mixture = GaussianMixture(2).fit(x)
    x[2, 1] = value
    for function in (mixture.fit, mixture.predict, mixture.log_prob):
        with pytest.raises(ArgumentError, match="x must be finite"):
            function(x)


def test_rows_out_of_range_are_refused():
    mixture = GaussianMixture(2).fit(torch.randn(6, 2))
    with pytest.raises(ArgumentError, match=r"x must be at most.*1e\+30"):
        mixture.predict(torch.full((1, 2), 1e30))
    assert mixture.responsibilities(torch.full((1, 2), 1e8)).isfinite().all()
    with pytest.raises(ArgumentError, match=r"x must be \(n, 2\)"):
        mixture.predict(torch.zeros(3, 3))
    with pytest.raises(ArgumentError, match="call fit"):
        GaussianMixture(2).predict(torch.zeros(3, 3))


@pytest.mark.parametrize(
    "option",
    [
        {"n_clusters": 0},
        {"covariance": "banana"},
        {"init": "k-medoids"},
        {"n_init": 0},
        {"max_iter": 0},
        {"tol": -1},
        {"regularization": -1e-9},
        {"memory_budget": 0},
    ],
)
def test_wrong_options_name_themselves(option):
    with pytest.raises(ArgumentError, match=next(iter(option))):
        GaussianMixture(**{"n_clusters": 2, **option})


# Memory, draws


class LargestTensor(TorchDispatchMode):
    """The bytes of the largest tensor that any operation returns."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [t.nbytes for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.bytes = max([self.bytes, *sizes])
        return result


@every_covariance
def test_blocks_keep_the_budget_and_do_not_change_the_result(covariance):
    x, _ = blobs(n=800, d=8, k=5)
    options = {"covariance": covariance, "init": x[:5], "max_iter": 4, "tol": 0}
    whole = GaussianMixture(5, **options).fit(x)
    with LargestTensor() as largest:
        blocked = GaussianMixture(5, memory_budget=20_000, **options).fit(x)
        blocked.responsibilities(x)
    assert largest.bytes <= x.nbytes  # five times as many for all (n, k, d) differences
    torch.testing.assert_close(blocked.means, whole.means)
    torch.testing.assert_close(blocked.covariances, whole.covariances)
    assert blocked.log_likelihood == pytest.approx(whole.log_likelihood, abs=1e-10)


def test_equal_seeds_give_equal_mixtures_and_touch_no_other_draw():
    x, _ = blobs()
    state = torch.get_rng_state()
    first, second = (GaussianMixture(5, seed=3, n_init=2).fit(x) for _ in range(2))
    assert torch.equal(first.means, second.means)
    assert torch.equal(first.sample(4, seed=1)[0], second.sample(4, seed=1)[0])
    assert torch.equal(state, torch.get_rng_state())


def test_the_best_restart_is_kept():
    x, _ = blobs(n=200, d=2, k=8, seed=4)
    options = {"init": "random", "max_iter": 5, "covariance": "diag"}
    many = GaussianMixture(8, n_init=6, seed=0, **options).fit(x).log_likelihood
    one = GaussianMixture(8, n_init=1, seed=0, **options).fit(x).log_likelihood
    assert many > one


@every_covariance
def test_samples_have_the_moments_of_their_component(covariance):
    x, _ = blobs()
    mixture = GaussianMixture(3, covariance=covariance, init=x[:3]).fit(x)
    rows, labels = mixture.sample(60_000, seed=0)
    shares = labels.bincount(minlength=3) / len(labels)
    torch.testing.assert_close(shares.double(), mixture.weights, rtol=0, atol=0.01)
    for j in range(3):
        own = rows[labels == j]
        spread = mixture.covariances[j]
        unit = float(spread.abs().max())
        matrix = own.T.cov() if covariance == "full" else own.var(dim=0)
        torch.testing.assert_close(own.mean(dim=0), mixture.means[j], rtol=0, atol=0.05 * unit)
        torch.testing.assert_close(matrix, spread, rtol=0, atol=0.05 * unit)


def test_half_precision_is_computed_in_float32():
    x = blobs()[0].to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixture = GaussianMixture(3, init=x[:3], max_iter=5).fit(x)
        codes = mixture.responsibilities(x)
    assert codes.dtype == torch.float32
    plain = GaussianMixture(3, init=x[:3].float(), max_iter=5).fit(x.float())
    assert torch.equal(codes, plain.responsibilities(x.float()))


# Evidence for splits


def test_the_evidence_is_the_product_of_its_predictions():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    start = torch.tensor([0.3, -0.2, 0.5]).double()
    kappa, nu, scale = 0.7, 4.5, 0.6
    mean, psi = start.numpy(), scale * np.eye(3)
    expected = 0.0
    for row in x.numpy():  # each row given those before it, by the conjugate update
        shape = psi * (kappa + 1) / (kappa * (nu - 2))
        expected += multivariate_t.logpdf(row, mean, shape, df=nu - 2)
        psi = psi + kappa / (kappa + 1) * np.outer(row - mean, row - mean)
        mean = (kappa * mean + row) / (kappa + 1)
        kappa, nu = kappa + 1, nu + 1
    prior = NormalInverseWishart(start, kappa=0.7, nu=4.5, scale=scale)
    assert prior.log_evidence(x) == pytest.approx(expected, abs=1e-9)
    torch.testing.assert_close(prior.posterior_mean(x), torch.from_numpy(mean))


def test_the_papers_example_of_evidence():
    prior = NormalInverseWishart(torch.zeros(1), kappa=1.0, nu=2.0, scale=1.0)
    evidence = prior.log_evidence(torch.tensor([[1.0], [3.0]]), mean=torch.tensor([2.0]))
    assert evidence == pytest.approx(-5.16324, abs=1e-5)
    assert log_split_ratio((2, 2), (-1, -1), -5) == pytest.approx(3 - math.log(6), abs=1e-12)
    assert log_split_ratio((2, 2), (-1, -1), -5, alpha=math.e) == pytest.approx(4 - math.log(6))


def split_score(x: Tensor, halves: Tensor) -> float:
    prior = NormalInverseWishart(x.mean(dim=0), kappa=1e-4, nu=3.0, scale=0.005)
    parts = [x[halves == 0], x[halves == 1]]

    def evidence(rows: Tensor) -> float:
        return prior.log_evidence(rows, prior.posterior_mean(rows))

    sizes = len(parts[0]), len(parts[1])
    return log_split_ratio(sizes, (evidence(parts[0]), evidence(parts[1])), evidence(x))


@pytest.mark.parametrize("seed", range(3))
def test_two_blobs_are_split_and_one_is_not(seed):
    generator = torch.Generator().manual_seed(seed)
    blob = 0.05 * torch.randn(40, 2, generator=generator, dtype=torch.float64)
    halves = torch.arange(40) % 2
    shift = torch.tensor([1.0, 0.0]).double()
    assert 45 < split_score(blob + halves[:, None] * shift, halves) < 71
    assert split_score(blob, halves) < -20
    assert split_score(blob, KMeans(2, seed=0).fit(blob).labels) < 0


def test_wrong_priors_name_themselves():
    for option in ({"kappa": 0}, {"nu": 1}, {"scale": 0}):
        with pytest.raises(ArgumentError, match=next(iter(option))):
            NormalInverseWishart(torch.zeros(2), **{"kappa": 1, "nu": 3, "scale": 1, **option})
    prior = NormalInverseWishart(torch.zeros(2), kappa=1, nu=3, scale=1)
    with pytest.raises(ArgumentError, match=r"x must be \(n, 2\)"):
        prior.log_evidence(torch.zeros(0, 2))
    with pytest.raises(ArgumentError, match="sizes"):
        log_split_ratio((0, 3), (0, 0), 0)
