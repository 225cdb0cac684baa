import pytest
import torch
from torch.nn.functional import normalize
from torchmetrics.functional.retrieval import (
    retrieval_average_precision,
    retrieval_hit_rate,
    retrieval_precision,
)

from common.errors import ArgumentError
from common.evaluation import retrieval, retrieval_scores

KS = [1, 2, 5]


def expected(nearness, labels, found_labels, alone):
    """torchmetrics, one query at a time."""
    sums: dict[str, float] = {}
    for i, row in enumerate(nearness):
        keep = torch.arange(len(row)) != i if alone else torch.ones(len(row), dtype=torch.bool)
        score, relevant = row[keep] - row.min() + 1, (found_labels == labels[i])[keep]
        parts = {"map": retrieval_average_precision(score, relevant)}
        for k in KS:
            parts[f"recall@{k}"] = retrieval_hit_rate(score, relevant, top_k=k)
            parts[f"precision@{k}"] = retrieval_precision(score, relevant, top_k=k)
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + float(value) / len(nearness)
    return sums


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
@pytest.mark.parametrize("alone", [True, False])
def test_scores_equal_torchmetrics(metric, alone, monkeypatch):
    monkeypatch.setattr(retrieval, "BLOCK_ENTRIES", 200)  # several blocks
    queries, labels = torch.randn(37, 6), torch.randint(5, (37,))
    labels[0] = 9  # a class that no other sample has
    found, found_labels = (
        (queries, labels) if alone else (torch.randn(60, 6), torch.randint(5, (60,)))
    )
    nearness = {
        "euclidean": -torch.cdist(queries.double(), found.double()),
        "cosine": normalize(queries.double()) @ normalize(found.double()).T,
        "dot": queries.double() @ found.double().T,
    }[metric]
    gallery = () if alone else (found, found_labels)
    scores = retrieval_scores(queries, labels, *gallery, ks=KS, metric=metric)
    assert scores == pytest.approx(expected(nearness, labels, found_labels, alone), abs=1e-6)


def test_of_equally_near_samples_the_earlier_comes_first():
    x, y = torch.ones(4, 2), torch.tensor([0, 1, 0, 1])
    scores = retrieval_scores(x, y, ks=[1])
    # Query 0 finds 1, the others find 0: only query 2 is of its class.
    assert scores["recall@1"] == 0.25


def test_far_from_the_origin_distances_stay_apart():
    x = torch.tensor([[0.0], [1.0], [3.0], [4.5]]) + 10_000
    scores = retrieval_scores(x, torch.tensor([0, 0, 1, 1]), ks=[1], metric="euclidean")
    assert scores["recall@1"] == 1


def test_wrong_arguments_are_named():
    x, y = torch.randn(6, 2), torch.arange(6)
    for args, options, words in (
        ((x, y), {"ks": [6]}, "ks must be an integer from 1 to 5, got 6"),
        ((x, y), {"metric": "l1"}, "metric must be one of"),
        ((x, y, x), {}, "gallery and gallery_labels go together"),
        ((x, y[:5]), {}, r"queries and labels must be \(n, 2\)"),
        ((x, y, x[:, :1], y), {}, r"gallery and gallery_labels must be \(n, 2\)"),
        ((x / 0, y), {}, "queries must be finite"),
    ):
        with pytest.raises(ArgumentError, match=words):
            retrieval_scores(*args, **{"ks": [1], **options})
