from math import exp, log, sqrt

import pytest
import torch

from common.errors import ArgumentError
from common.evaluation import alignment, tolerance, uniformity


def unit(x):
    return [row / row.norm() for row in x.double()]


def test_definitions_by_loops():
    x, y = 4 * torch.randn(25, 6), torch.randn(25, 6)
    labels = torch.randint(4, (25,)) * 3
    points, others = unit(x), unit(y)
    pairs = [(i, j) for i in range(25) for j in range(25) if i < j]
    distances = [float((points[i] - points[j]).square().sum()) for i, j in pairs]
    for t in (2.0, 50.0):
        expected = log(sum(exp(-t * d) for d in distances) / len(pairs))
        assert uniformity(x, t=t) == pytest.approx(expected, rel=1e-5)
    apart = [float((p - q).norm()) for p, q in zip(points, others, strict=True)]
    assert alignment(x, y) == pytest.approx(sum(d**2 for d in apart) / 25, rel=1e-5)
    assert alignment(x, y, power=1.0) == pytest.approx(sum(apart) / 25, rel=1e-5)
    same = [float(points[i] @ points[j]) for i, j in pairs if labels[i] == labels[j]]
    assert tolerance(x, labels) == pytest.approx(sum(same) / len(same), rel=1e-4)
    literal = (2 * sum(same) + 25) / 25**2
    assert tolerance(x, labels, conditional=False) == pytest.approx(literal, rel=1e-5)


def test_values_of_the_temperature_study():
    many = torch.randn(4000, 128)
    assert uniformity(many) == pytest.approx(-3.9375, abs=5e-3)
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-6)
    assert tolerance(torch.eye(4).repeat(3, 1), torch.arange(12) % 4) == pytest.approx(1)


def test_scale_and_zero_rows():
    x = torch.randn(9, 3)
    assert uniformity(x * 1e30) == pytest.approx(uniformity(x), rel=1e-5)
    assert alignment(torch.zeros(2, 3), torch.eye(3)[:2]) == 1.0
    assert alignment(x, -x, power=1.0) == pytest.approx(2)
    assert sqrt(alignment(x, x * 1e-30)) == pytest.approx(0, abs=1e-6)


def test_wrong_arguments_are_named():
    x = torch.randn(6, 2)
    for call, words in (
        (lambda: uniformity(x[:1]), "x must be .*at least 2"),
        (lambda: uniformity(x, t=0), "t must be above 0"),
        (lambda: uniformity(x / 0), "x must be finite"),
        (lambda: alignment(x, x[:5]), "first and second must have one shape"),
        (lambda: alignment(x, x, power=0), "power must be"),
        (lambda: tolerance(x, torch.arange(5)), "equally long, got 6 and 5"),
        (lambda: tolerance(x, torch.arange(6)), "two samples share one"),
    ):
        with pytest.raises(ArgumentError, match=words):
            call()
