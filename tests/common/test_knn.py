import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from common.errors import ArgumentError
from common.evaluation import knn_classify


def by_loops(train, labels, queries, k, temperature, c):
    votes = torch.zeros(len(queries), c, dtype=torch.float64)
    for i, query in enumerate(queries.double()):
        cosines = [float(query @ x / query.norm() / x.norm()) for x in train.double()]
        nearest = sorted(range(len(train)), key=lambda j: -cosines[j])[:k]
        for j in nearest:
            votes[i, labels[j]] += torch.tensor(cosines[j] / temperature).double().exp()
    return votes / votes.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("k", [1, 7, 30])
def test_votes_equal_the_definition(k, temperature):
    train, queries = torch.randn(30, 5), 3 * torch.randn(11, 5)
    labels = torch.randint(4, (30,))
    votes = knn_classify(
        train, labels, queries, n_neighbors=k, temperature=temperature, n_classes=6
    )
    torch.testing.assert_close(
        votes.double(), by_loops(train, labels, queries, k, temperature, 6), atol=1e-5, rtol=0
    )


def test_equal_votes_are_scikit_learns_probabilities():
    data = load_digits()
    x, y = torch.from_numpy(data.data), torch.from_numpy(data.target)
    reference = KNeighborsClassifier(20, metric="cosine", algorithm="brute")
    expected = reference.fit(x[:1200], y[:1200]).predict_proba(x[1200:])
    votes = knn_classify(x[:1200], y[:1200], x[1200:], n_neighbors=20, temperature=float("inf"))
    torch.testing.assert_close(votes, torch.from_numpy(expected))


def test_a_small_temperature_leaves_the_nearest_and_does_not_overflow():
    train, queries = torch.randn(30, 5), torch.randn(11, 5)
    labels = torch.randint(4, (30,))
    votes = knn_classify(train, labels, queries, n_neighbors=30, temperature=1e-6)
    nearest = knn_classify(train, labels, queries, n_neighbors=1)
    torch.testing.assert_close(votes, nearest)


def test_blocks_do_not_change_the_votes():
    train, queries, labels = torch.randn(50, 5), torch.randn(40, 5), torch.randint(4, (50,))
    votes = knn_classify(train, labels, queries, n_neighbors=9)
    parts = knn_classify(train, labels, queries, n_neighbors=9, memory_budget=1000)
    torch.testing.assert_close(parts, votes)


def test_wrong_arguments_are_named():
    x, y = torch.randn(6, 2), torch.arange(6)
    for options, words in (
        ({"n_neighbors": 7}, "n_neighbors must be an integer from 1 to 6, got 7"),
        ({"n_neighbors": 2, "temperature": 0.0}, "temperature must be above 0"),
        ({"n_neighbors": 2, "n_classes": 3}, "train_labels"),
    ):
        with pytest.raises(ArgumentError, match=words):
            knn_classify(x, y, x, **options)
    with pytest.raises(ArgumentError, match="equally long, got 6 and 5"):
        knn_classify(x, y[:5], x, n_neighbors=1)
    x[0, 0] = float("nan")
    with pytest.raises(ArgumentError, match="finite"):
        knn_classify(x, y, x, n_neighbors=1)
