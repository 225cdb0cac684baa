"""The contrastive losses against slow references in loops, float64, and against dense forms."""

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ArgumentError
from common.losses import (
    DebiasedContrast,
    DecoupledContrast,
    HardContrast,
    InfoNCE,
    NTXent,
    SupervisedContrast,
    alignment,
    concentration,
    debiased_contrast,
    decoupled_contrast,
    hard_contrast,
    info_nce,
    nt_xent,
    prototypical_contrast,
    streamed_logsumexp,
    supervised_contrast,
    swapped_prediction,
    uniformity,
)
from tests.common.tensors import largest_tensor

T = 0.3


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


X, Y = normal(7, 4), normal(7, 4, seed=1)
NEGATIVES = normal(5, 4, seed=2)
LABELS = torch.tensor([3, 0, 3, 0, 3, 8, -2])


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def e(a, b, factor=1.0):
    return math.exp(factor * cosine(a, b) / T)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def two_views(x, y):
    """Of each of the 2n anchors: itself, its positive, its negatives."""
    x, y = x.tolist(), y.tolist()
    n, z = len(x), x + y
    for i in range(2 * n):
        yield z[i], z[(i + n) % (2 * n)], [z[j] for j in range(2 * n) if j % n != i % n]


def with_given(x, y, negatives):
    for a, p in zip(x.tolist(), y.tolist(), strict=True):
        yield a, p, negatives.tolist()


def slow_cross_entropy(terms):
    return mean(-math.log(e(a, p) / (e(a, p) + sum(e(a, c) for c in neg))) for a, p, neg in terms)


def slow_decoupled(terms):
    return mean(-math.log(e(a, p) / sum(e(a, c) for c in neg)) for a, p, neg in terms)


def slow_hard(terms, beta, prior):
    def one(a, p, neg):
        weights = [e(a, c, beta) for c in neg]
        g = sum(w * e(a, c) for w, c in zip(weights, neg, strict=True)) / sum(weights)
        g = max((g - prior * e(a, p)) / (1 - prior), math.exp(-1 / T))
        return -math.log(e(a, p) / (e(a, p) + len(neg) * g))

    return mean(one(*term) for term in terms)


def slow_supervised(z, labels, anchors=None):
    z, labels, losses = z.tolist(), labels.tolist(), []
    for i in range(len(z)) if anchors is None else anchors:
        others = [j for j in range(len(z)) if j != i]
        positives = [j for j in others if labels[j] == labels[i]]
        below = sum(e(z[i], z[j]) for j in others)
        if positives:
            losses.append(mean(-math.log(e(z[i], z[p]) / below) for p in positives))
    return mean(losses)


def close(loss, slow):
    assert loss.item() == pytest.approx(slow, rel=1e-12)


class TestInfoNCE:
    def test_in_batch(self):
        others = [Y[torch.arange(7) != i] for i in range(7)]
        terms = [next(with_given(X[i : i + 1], Y[i : i + 1], others[i])) for i in range(7)]
        close(info_nce(X, Y, temperature=T), slow_cross_entropy(terms))

    def test_given_negatives(self):
        terms = with_given(X, Y, NEGATIVES)
        close(info_nce(X, Y, NEGATIVES, temperature=T), slow_cross_entropy(terms))

    def test_both(self):
        others = [torch.cat([Y[torch.arange(7) != i], NEGATIVES]) for i in range(7)]
        terms = [next(with_given(X[i : i + 1], Y[i : i + 1], others[i])) for i in range(7)]
        loss = info_nce(X, Y, NEGATIVES, temperature=T, in_batch=True)
        close(loss, slow_cross_entropy(terms))

    @pytest.mark.parametrize("negatives", [None, NEGATIVES])
    def test_several_positives(self, negatives):
        positive = normal(7, 3, 4, seed=3)
        x, y, losses = X.tolist(), positive.tolist(), []
        for i in range(7):
            if negatives is None:
                candidates = [c for row in y for c in row]
            else:
                candidates = y[i] + negatives.tolist()
            below = sum(e(x[i], c) for c in candidates)
            losses += [-math.log(e(x[i], p) / below) for p in y[i]]
        close(info_nce(X, positive, negatives, temperature=T), mean(losses))

    def test_one_of_several_positives_is_the_plain_loss(self):
        torch.testing.assert_close(
            info_nce(X, Y[:, None], temperature=T), info_nce(X, Y, temperature=T)
        )

    def test_values_of_the_queue(self):  # MoCHi card, check 3: key = query, three negatives
        q = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        angle = torch.tensor([0.1, 1.0, 2.0], dtype=torch.float64)
        queue = torch.stack([angle.cos(), angle.sin()], dim=1)
        expected = math.log1p(sum(math.exp((math.cos(a) - 1) / 0.2) for a in angle.tolist()))
        assert info_nce(q, q, queue, temperature=0.2).item() == pytest.approx(expected, rel=1e-12)

    def test_a_tiny_loss_keeps_its_digits(self):
        z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        expected = math.log1p(math.exp(-2 / 0.05))
        assert info_nce(z, z, temperature=0.05).item() == pytest.approx(expected, rel=1e-5)

    def test_learned_temperature(self):
        module = InfoNCE(T, learnable=True).double()
        loss = module(X, Y)
        torch.testing.assert_close(loss, info_nce(X, Y, temperature=T), rtol=1e-7, atol=0)
        (gradient,) = torch.autograd.grad(loss, module.log_scale)
        step = 1e-5
        up, down = (info_nce(X, Y, temperature=T * math.exp(s)) for s in (-step, step))
        assert gradient.item() == pytest.approx((up - down).item() / (2 * step), rel=1e-6)
        module.log_scale.data.fill_(99.0)
        assert module.temperature.item() == pytest.approx(0.01)


def test_nt_xent():
    close(nt_xent(X, Y, temperature=T), slow_cross_entropy(two_views(X, Y)))
    given = nt_xent(X, Y, NEGATIVES, temperature=T)
    close(given, slow_cross_entropy(with_given(X, Y, NEGATIVES)))


def test_nt_xent_of_orthogonal_pairs():  # GPC card, check 6
    assert nt_xent(torch.eye(2), torch.eye(2), temperature=1.0).item() == pytest.approx(0.551445)


def test_decoupled_contrast():
    close(decoupled_contrast(X, Y, temperature=T), slow_decoupled(two_views(X, Y)))
    given = decoupled_contrast(X, Y, NEGATIVES, temperature=T)
    close(given, slow_decoupled(with_given(X, Y, NEGATIVES)))


@pytest.mark.parametrize(("beta", "prior"), [(0.0, 0.0), (0.0, 0.3), (0.5, 0.0), (2.0, 0.1)])
def test_hard_contrast(beta, prior):
    options = {"temperature": T, "concentration": beta, "class_prior": prior}
    close(hard_contrast(X, Y, **options), slow_hard(two_views(X, Y), beta, prior))
    given = hard_contrast(X, Y, NEGATIVES, **options)
    close(given, slow_hard(with_given(X, Y, NEGATIVES), beta, prior))


def test_debiased_contrast():
    close(debiased_contrast(X, Y, temperature=T, class_prior=0.3),
          slow_hard(two_views(X, Y), 0.0, 0.3))  # fmt: skip
    plain = debiased_contrast(X, Y, temperature=T, class_prior=0.0)
    torch.testing.assert_close(plain, nt_xent(X, Y, temperature=T))


def test_the_bound_of_the_debiased_negatives_has_no_gradient():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    given = torch.tensor([[-1.0, 0.0], [0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    loss = debiased_contrast(x, x.detach(), given, temperature=1.0, class_prior=0.9)
    expected = math.log1p(2 * math.exp(-1) / math.exp(1))
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert given.grad.count_nonzero() == 0


class TestSupervisedContrast:
    def test_one_view(self):
        close(supervised_contrast(X, labels=LABELS, temperature=T), slow_supervised(X, LABELS))

    def test_two_views(self):
        loss = supervised_contrast(X, Y, labels=LABELS, temperature=T)
        close(loss, slow_supervised(torch.cat([X, Y]), LABELS.repeat(2)))

    @pytest.mark.parametrize("views", [1, 2])
    def test_queue(self, views):
        queue_labels = torch.tensor([0, 3, 3, 7, 8])
        losses = []
        for i in range(7):
            seen = [X[i : i + 1], Y[i : i + 1], NEGATIVES][:: 3 - views]
            own = LABELS[i].repeat(views)
            labels = torch.cat([own, queue_labels])
            if (labels[1:] == LABELS[i]).any():
                losses.append(slow_supervised(torch.cat(seen), labels, [0]))
        loss = supervised_contrast(
            X,
            Y if views == 2 else None,
            NEGATIVES,
            labels=LABELS,
            queue_labels=queue_labels,
            temperature=T,
        )
        close(loss, mean(losses))

    def test_all_different_is_nt_xent(self):  # GPC card, check 7
        loss = supervised_contrast(X, Y, labels=torch.arange(7), temperature=T)
        torch.testing.assert_close(loss, nt_xent(X, Y, temperature=T))

    def test_closed_form(self):  # SBCL card, check 4, of one class
        z = torch.eye(2)
        loss = supervised_contrast(z, z, labels=torch.zeros(2, dtype=torch.long), temperature=1.0)
        assert loss.item() == pytest.approx(1.551445 - 1 / 3, abs=1e-6)

    def test_no_positive_is_zero(self):
        z = X.clone().requires_grad_()
        loss = supervised_contrast(z, labels=torch.arange(7), temperature=T)
        loss.backward()
        assert loss.item() == 0
        assert z.grad.count_nonzero() == 0


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_alignment(alpha):
    slow = mean(
        (2 - 2 * cosine(a, b)) ** (alpha / 2) for a, b in zip(X.tolist(), Y.tolist(), strict=True)
    )
    close(alignment(X, Y, alpha=alpha), slow)
    z = torch.tensor([[1.0, 2.0]], requires_grad=True)
    alignment(z, z.detach(), alpha=alpha).backward()
    assert z.grad.tolist() == [[0, 0]]


@pytest.mark.parametrize("t", [0.5, 2.0, 40.0])
def test_uniformity(t):
    z = X.tolist()
    pairs = [(i, j) for i in range(7) for j in range(i)]
    potential = mean(math.exp(-t * (2 - 2 * cosine(z[i], z[j]))) for i, j in pairs)
    close(uniformity(X, t=t), math.log(potential))


@pytest.mark.parametrize("temperature", [0.2, torch.tensor([0.1, 0.2, 0.5], dtype=torch.float64)])
def test_prototypical_contrast(temperature):
    prototypes, clusters = normal(3, 4, seed=5), torch.arange(7) % 3
    phi = [temperature] * 3 if isinstance(temperature, float) else temperature.tolist()
    losses = []
    for row, own in zip(X.tolist(), clusters.tolist(), strict=True):
        scores = [
            math.exp(cosine(row, c) / f) for c, f in zip(prototypes.tolist(), phi, strict=True)
        ]
        losses.append(-math.log(scores[own] / sum(scores)))
    close(prototypical_contrast(X, prototypes, clusters, temperature=temperature), mean(losses))


def test_concentration():
    prototypes = normal(12, 4, seed=5)
    clusters = torch.randint(11, (60,), generator=torch.Generator().manual_seed(3))
    clusters[clusters == 4] = 5  # empty
    clusters[torch.arange(60)[clusters == 7][1:]] = 8  # a single member
    z, phi = normal(60, 4, seed=6), []
    for a in range(12):
        members = [row for row, own in zip(z, clusters.tolist(), strict=True) if own == a]
        spread = sum((row - prototypes[a]).square().sum().sqrt().item() for row in members)
        size = len(members)
        phi.append(spread / (size * math.log(size + 10)) if size > 1 else None)
    assert phi.count(None) == 3
    phi = [max(p for p in phi if p is not None) if p is None else p for p in phi]
    sorted_phi = sorted(phi)
    low = sorted_phi[1] + 0.1 * (sorted_phi[2] - sorted_phi[1])  # position 0.1 * 11
    high = sorted_phi[9] + 0.9 * (sorted_phi[10] - sorted_phi[9])
    phi = [min(max(p, low), high) for p in phi]
    expected = torch.tensor([0.2 * p / mean(phi) for p in phi], dtype=torch.float64)
    actual = concentration(z, prototypes, clusters, temperature=0.2)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    same = concentration(z[:3], z[:3], torch.arange(3), temperature=0.2)
    assert same.tolist() == [0.2] * 3


@pytest.mark.parametrize(("views", "assigned"), [(2, 2), (2, 1), (4, 2)])
def test_swapped_prediction(views, assigned):
    scores = [normal(5, 3, seed=v) for v in range(views)]
    codes = [normal(5, 3, seed=9 + a).softmax(dim=1) for a in range(assigned)]
    losses = []
    for a in range(assigned):
        for v in range(views):
            if v != a:
                for s, q in zip(scores[v].tolist(), codes[a].tolist(), strict=True):
                    below = sum(math.exp(x / 0.1) for x in s)
                    losses.append(
                        -sum(w * math.log(math.exp(x / 0.1) / below)
                             for w, x in zip(q, s, strict=True))
                    )  # fmt: skip
    close(swapped_prediction(scores, codes), mean(losses))


def test_swapped_prediction_of_equal_scores():  # SwAV card: a loss stuck at ln k
    scores, codes = torch.zeros(2, 4, 8), torch.full((2, 4, 8), 1 / 8, requires_grad=True)
    loss = swapped_prediction(list(scores), list(codes))
    assert loss.item() == pytest.approx(math.log(8))
    assert not loss.requires_grad


def dense_logsumexp(rows, columns, bias, row_ids, column_ids):
    similarity = rows @ columns.T + bias
    return similarity.masked_fill(row_ids[:, None] == column_ids, -torch.inf).logsumexp(dim=1)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 9),
    m=st.integers(1, 9),
    block_entries=st.integers(1, 100),
    groups=st.integers(2, 20),
    scale=st.sampled_from([0.0, 1.0, 50.0]),
    seed=st.integers(0, 99),
)
def test_blocks_change_nothing(n, m, block_entries, groups, scale, seed):
    inputs = [
        x.requires_grad_()
        for x in (scale * normal(n, 3, seed=seed), normal(m, 3, seed=seed + 1), normal(m))
    ]
    row_ids, column_ids = torch.arange(n) % groups, (torch.arange(m) + seed) % groups
    rows, columns, bias = inputs
    expected = dense_logsumexp(rows, columns, bias, row_ids, column_ids)
    actual = streamed_logsumexp(
        rows,
        columns,
        bias=bias,
        row_ids=row_ids,
        column_ids=column_ids,
        block_entries=block_entries,
    )
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    weight = normal(n, seed=seed).where(expected.isfinite(), 0)
    torch.testing.assert_close(
        torch.autograd.grad(actual, inputs, weight),
        torch.autograd.grad(
            expected.where(expected.isfinite(), 0), inputs, weight, materialize_grads=True
        ),
        rtol=1e-9,
        atol=1e-11,
    )


@settings(deadline=None, max_examples=30)
@given(n=st.integers(2, 9), block_entries=st.integers(1, 400), seed=st.integers(0, 99))
def test_block_size_changes_no_loss(n, block_entries, seed):
    x, y = normal(n, 3, seed=seed), normal(n, 3, seed=seed + 1)
    labels = torch.arange(n) % 2
    for loss in (
        lambda x, **options: nt_xent(x, y, temperature=T, **options),
        lambda x, **options: nt_xent(x, y, temperature=0.01, **options),  # the running maximum
        lambda x, **options: info_nce(x, y, temperature=T, **options),
        lambda x, **options: hard_contrast(x, y, temperature=T, **options),
        lambda x, **options: supervised_contrast(x, y, labels=labels, temperature=T, **options),
        lambda x, **options: uniformity(x, **options),
    ):
        z = x.clone().requires_grad_()
        values = [loss(z), loss(z, block_entries=block_entries)]
        torch.testing.assert_close(*values, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            *(torch.autograd.grad(value, z) for value in values), rtol=1e-9, atol=1e-11
        )


@pytest.mark.parametrize("temperature", [0.07, 0.01])
def test_float32_is_as_exact_as_the_dense_form(temperature):
    n = 700  # more than one block
    x, y = (normal(n, 16, seed=s, dtype=torch.float32) for s in range(2))

    def dense(x, y):
        z = torch.nn.functional.normalize(torch.cat([x, y]), dim=1)
        logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
        return torch.nn.functional.cross_entropy(logits, torch.arange(2 * n).roll(n))

    def streamed(x, y):
        return nt_xent(x, y, temperature=temperature)

    def results(form, dtype):
        a, b = (z.to(dtype).requires_grad_() for z in (x, y))
        loss = form(a, b)
        return loss.detach(), torch.stack(torch.autograd.grad(loss, (a, b)))

    exact_loss, exact = results(dense, torch.float64)
    errors = {}
    for form in (streamed, dense):
        loss, gradient = results(form, torch.float32)
        torch.testing.assert_close(loss.double(), exact_loss, rtol=1e-6, atol=0)
        errors[form] = float((gradient - exact).abs().max() / exact.abs().max())
    assert errors[streamed] <= max(1e-6, 1.5 * errors[dense])  # float32 itself has 2e-6 at 0.01


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y: info_nce(x, y, temperature=T),
        lambda x, y: info_nce(x, y, y.roll(1, 0), temperature=T),
        lambda x, y: nt_xent(x, y, temperature=T),
        lambda x, y: nt_xent(x, y, temperature=0.01),
        lambda x, y: decoupled_contrast(x, y, temperature=T),
        lambda x, y: hard_contrast(x, y, temperature=T),
        lambda x, y: supervised_contrast(x, y, labels=torch.arange(len(x)) // 9, temperature=T),
        lambda x, y: uniformity(x),
        lambda x, y: prototypical_contrast(x, y, torch.arange(len(x)), temperature=T),
    ],
)
def test_memory_holds_no_square_array(loss):
    n = 2000
    x, y = (torch.randn(n, 8, requires_grad=True) for _ in range(2))
    assert largest_tensor(lambda: loss(x, y).backward()) < n * n / 8


def test_second_derivatives_are_refused():
    for loss in (nt_xent, info_nce):
        x = X.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x, Y, temperature=T), x, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivative of a streamed contrastive loss"):
            gradient.square().sum().backward()


def test_modules_agree_with_their_functions():
    labels = torch.arange(7) % 3
    for module, function, options in (
        (InfoNCE, info_nce, {}),
        (NTXent, nt_xent, {}),
        (DecoupledContrast, decoupled_contrast, {}),
        (DebiasedContrast, debiased_contrast, {"class_prior": 0.2}),
        (HardContrast, hard_contrast, {"concentration": 0.5, "class_prior": 0.2}),
    ):
        for extra in ((), (NEGATIVES,)):
            expected = function(X, Y, *extra, temperature=T, **options)
            assert torch.equal(module(T, **options)(X, Y, *extra), expected)
    both = info_nce(X, Y, NEGATIVES, temperature=T, in_batch=True)
    assert torch.equal(InfoNCE(T, in_batch=True)(X, Y, NEGATIVES), both)
    assert torch.equal(InfoNCE(T, in_batch=True)(X, Y), info_nce(X, Y, temperature=T))
    expected = supervised_contrast(X, Y, labels=labels, temperature=T)
    assert torch.equal(SupervisedContrast(T)(X, Y, labels=labels), expected)


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is installed on Linux only")
def test_the_fused_kernels_in_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "tests.common.triton_kernels"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: info_nce(X[0], Y, temperature=T), r"anchor must be \(n, d\) floats"),
        (lambda: info_nce(X.long(), Y, temperature=T), "anchor must be .* got .* of torch.int64"),
        (lambda: info_nce(X[:0], Y[:0], temperature=T), "anchor must be .* n at least 1"),
        (lambda: info_nce(X, Y[:3], temperature=T), r"positive must be \(7, 4\) or \(7, p, 4\)"),
        (lambda: info_nce(X, Y, Y[:, :2], temperature=T), r"negatives must be \(m, d\) with d = 4"),
        (lambda: info_nce(X, Y, temperature=T, in_batch=True), "in_batch must come with negatives"),
        (
            lambda: nt_xent(X, Y[:3], temperature=T),
            "positive must be floats of the shape of anchor",
        ),
        (lambda: nt_xent(X, Y, temperature=0), "temperature must be positive and finite, got 0"),
        (lambda: NTXent(float("nan")), "temperature must be positive and finite, got nan"),
        (lambda: nt_xent(X, Y, temperature=torch.ones(2)), "temperature must be a scalar"),
        (lambda: nt_xent(X, Y, temperature=T, block_entries=0), "block_entries must be an integer"),
        (lambda: decoupled_contrast(X[:1], Y[:1], temperature=T), "anchor must be at least 2 rows"),
        (lambda: debiased_contrast(X, Y, temperature=T, class_prior=1), "class_prior must be in"),
        (lambda: hard_contrast(X, Y, temperature=T, concentration=-1), "concentration must be at"),
        (lambda: HardContrast(T, class_prior=-0.1), r"class_prior must be in \[0, 1\), got -0.1"),
        (
            lambda: supervised_contrast(X, labels=LABELS[:3], temperature=T),
            r"labels must be \(7,\)",
        ),
        (
            lambda: supervised_contrast(X, labels=LABELS.double(), temperature=T),
            "labels must be .* got .* of torch.float64",
        ),
        (
            lambda: supervised_contrast(X, queue=Y, labels=LABELS, temperature=T),
            "queue and queue_labels must be given together",
        ),
        (lambda: alignment(X, Y, alpha=0.5), "alpha must be at least 1, got 0.5"),
        (lambda: uniformity(X[:1]), "z must be at least 2 rows"),
        (lambda: uniformity(X, t=-1), "t must be positive and finite, got -1"),
        (
            lambda: prototypical_contrast(X, Y, LABELS, temperature=torch.ones(2)),
            r"temperature must be \(7,\), got \(2,\)",
        ),
        (lambda: concentration(X, Y, LABELS, temperature=T, smoothing=0), "smoothing must be"),
        (lambda: swapped_prediction([X], [X]), "at least 2 views"),
        (lambda: swapped_prediction([X, Y], [X, X, X]), "got 2 and 3"),
        (lambda: swapped_prediction([X, Y], [X[:3]]), r"codes must all be \(n, k\) of one shape"),
        (lambda: streamed_logsumexp(X, Y[:, :2]), "rows and columns must be"),
        (lambda: streamed_logsumexp(X, Y.float()), "must both be float32 or float64"),
        (lambda: streamed_logsumexp(X, Y, bias=X), r"bias must be \(7,\), got \(7, 4\)"),
        (lambda: streamed_logsumexp(X, Y, row_ids=LABELS), "must be given together"),
    ],
)
def test_bad_arguments_name_themselves(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
