import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from torch import Tensor, multiprocessing

from common.errors import ArgumentError
from common.metrics import (
    ClusterAccuracy,
    MatchedMacroF1,
    cluster_accuracy,
    contingency_table,
    match_clusters,
    matched_macro_f1,
)
from tests.common.metric_shards import noisy, score_shard
from tests.common.mps import Single

METRICS = [(ClusterAccuracy, cluster_accuracy), (MatchedMacroF1, matched_macro_f1)]
each_metric = pytest.mark.parametrize(("metric_class", "function"), METRICS)


def best_accuracy(preds: Tensor, target: Tensor, n: int) -> float:
    """By trying every one-to-one naming of clusters 0..n-1 by classes 0..n-1."""
    return max(
        float((torch.tensor(names)[preds] == target).double().mean())
        for names in itertools.permutations(range(n))
    )


@pytest.mark.parametrize("n_clusters", [2, 4, 5])
@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_accuracy_is_the_best_over_all_matchings(n_clusters, n_classes):
    preds, target = noisy(60, 5, seed=n_clusters + 10 * n_classes)
    preds, target = preds % n_clusters, target % n_classes
    expected = best_accuracy(preds, target, max(n_clusters, n_classes))
    assert float(cluster_accuracy(preds, target)) == pytest.approx(expected)


def test_macro_f1_is_scikit_learns_of_the_renamed_labels():
    preds, target = noisy(500, 6)
    names = match_clusters(contingency_table(preds, target, 6, 6))
    expected = f1_score(target, names[preds], average="macro")
    assert float(matched_macro_f1(preds, target)) == pytest.approx(expected)


def test_a_class_without_a_cluster_has_no_f1():
    target = torch.tensor([0, 0, 0, 1, 1, 2])
    preds = torch.tensor([4, 4, 4, 2, 2, 2])
    assert float(cluster_accuracy(preds, target)) == pytest.approx(5 / 6)
    assert float(matched_macro_f1(preds, target)) == pytest.approx((1 + 0.8 + 0) / 3)


def test_a_cluster_without_a_class_is_an_error():
    target = torch.tensor([0, 0, 0, 0, 1, 1])
    preds = torch.tensor([0, 0, 0, 2, 1, 1])
    assert match_clusters(contingency_table(preds, target, 3, 2)).tolist() == [0, 1, -1]
    assert float(cluster_accuracy(preds, target)) == pytest.approx(5 / 6)
    assert float(matched_macro_f1(preds, target)) == pytest.approx((6 / 7 + 1) / 2)


@each_metric
def test_inputs_stay_untouched(metric_class, function):
    preds, target = noisy(50, 4)
    before = preds.clone(), target.clone()
    function(preds, target)
    metric_class(4).update(preds, target)
    assert torch.equal(preds, before[0])
    assert torch.equal(target, before[1])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=25),
    st.permutations(range(5)),
)
def test_names_of_clusters_do_not_matter(pairs, names):
    preds, target = torch.tensor(pairs).T
    renamed = torch.tensor(names)[preds]
    for _, function in METRICS:
        score = float(function(preds, target))
        assert float(function(renamed, target)) == score
        assert 0 <= score <= 1


@each_metric
def test_batches_add_up(metric_class, function):
    preds, target = noisy(300, 5)
    metric = metric_class(5)
    for part in torch.arange(300).split(70):
        metric.update(preds[part], target[part])
    assert metric.compute() == function(preds, target)
    metric.reset()
    metric.update(target, target)
    assert metric.compute() == 1


@each_metric
def test_more_names_than_occur_change_nothing(metric_class, function):
    preds, target = noisy(100, 3)
    metric = metric_class(7, n_classes=5)
    metric.update(preds, target)
    assert metric.compute() == function(preds, target)


def test_two_processes_give_the_value_of_one(tmp_path):
    multiprocessing.spawn(score_shard, args=(str(tmp_path),), nprocs=2)
    preds, target = noisy(301, 5)
    for rank in range(2):
        scores = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for metric_class, function in METRICS:
            assert scores[metric_class.__name__] == function(preds, target)


@each_metric
def test_names_may_be_large(metric_class, function):
    preds, target = noisy(100, 4)
    assert function(preds * 10**12, target * 10**12) == function(preds, target)


@each_metric
def test_no_float64_is_asked_of_a_device_without(metric_class, function):
    preds, target = noisy(100, 4)
    with pytest.raises(TypeError, match="float64"):
        preds.as_subclass(Single).double()
    assert function(preds.as_subclass(Single), target.as_subclass(Single)) == function(
        preds, target
    )


LABELS = torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("preds", "target", "words"),
    [
        (LABELS.float(), LABELS, ["preds", "integers", "float32"]),
        (LABELS, LABELS.bool(), ["target", "integers", "bool"]),
        ([0, 1, 2], LABELS, ["preds", "list"]),
        (LABELS[:2], LABELS, ["2", "3"]),
        (LABELS[None], LABELS, ["preds", "(1, 3)"]),
        (LABELS[:0], LABELS[:0], ["preds", "(0,)"]),
        (LABELS, LABELS - 1, ["target", "-1"]),
    ],
)
def test_wrong_labels_are_named(preds, target, words):
    for _, function in METRICS:
        with pytest.raises(ArgumentError) as error:
            function(preds, target)
        assert all(word in str(error.value) for word in words)


@each_metric
def test_labels_out_of_range_are_named(metric_class, function):
    with pytest.raises(ArgumentError, match=r"preds must be in \[0, 2\), got values from 0 to 2"):
        metric_class(2).update(LABELS, LABELS)
    with pytest.raises(ArgumentError, match=r"target must be in \[0, 2\)"):
        metric_class(3, n_classes=2).update(LABELS, LABELS)
    with pytest.raises(ArgumentError, match="n_clusters must be an integer of at least 1, got 0"):
        metric_class(0)
    with pytest.raises(ArgumentError, match=r"preds must be in \[0, 2\)"):
        function(LABELS, LABELS, n_clusters=2)
    with pytest.raises(ArgumentError, match="contingency"):
        match_clusters(LABELS)
