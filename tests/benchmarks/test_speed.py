import json

import pytest
import torch

from benchmarks.speed import _measure, contrast, kmeans, losses, scgc, sinkhorn, views
from benchmarks.speed._measure import Goal, Limit, Measurement, compare, measure, report, run
from common.errors import ArgumentError, RunError

RESULTS = {"ours": Measurement(1.0, 10.0), "peer": Measurement(4.0, 15.0)}


@pytest.mark.parametrize(
    ("goal", "status"),
    [
        (Goal("ours", "peer"), 0),
        (Goal("ours", "peer", time=0.25), 0),
        (Goal("ours", "peer", time=0.24), 1),
        (Goal("ours", "peer", time=0.5, memory=0.5), 1),
        (Goal("ours", "peer", time=0.5, memory=0.7), 0),
    ],
)
def test_status_says_whether_the_goals_are_met(goal, status, capsys):
    assert report(RESULTS, [goal], as_json=True) == status
    (ratio,) = json.loads(capsys.readouterr().out)["ratios"]
    assert ratio["time_ratio"] == 0.25
    assert ratio["met"] == (status == 0)


@pytest.mark.parametrize(
    ("ours", "peer", "met", "equal"),
    [
        (100.0, 100.4, True, True),
        (100.6, 100.0, False, True),
        (100.0, 103.0, True, False),
    ],
)
@pytest.mark.parametrize("slower", [False, True])
def test_time_is_compared_at_an_equal_objective(ours, peer, met, equal, slower):
    results = {
        "ours": Measurement(2.0 if slower else 0.5, 1.0, ours),
        "peer": Measurement(1.0, 1.0, peer),
    }
    ratios = Goal("ours", "peer", time=1.0, objective=1.005).ratios(results)
    assert ratios["equal_objective"] == equal
    assert ratios["met"] == (met and not (slower and equal))
    assert ratios["objective_ratio"] == ours / peer


def test_what_is_missing_is_skipped_and_what_is_asked_for_is_run(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(
        _measure,
        "compare",
        lambda module, names, *_: seen.extend(names) or {n: Measurement(1.0, 1.0) for n in names},
    )
    contenders = ("a: 1", "b: 1", "a: 2", "b: 2")
    goals = (Goal("a: 1", "b: 1", time=0.5), Goal("a: 2", "b: 2", time=0.5))
    reason = {"b: 1": "b is not installed"}.get
    arguments = ("x", lambda c: lambda: None, contenders, goals)
    assert _measure.run(*arguments, ["--only", ": 1"], missing=reason) == 0
    assert seen == ["a: 1"]
    assert "skipped b: 1: b is not installed" in capsys.readouterr().err
    assert _measure.run(*arguments, []) == 1
    with pytest.raises(ArgumentError, match="--only"):
        _measure.run(*arguments, ["--only", "nobody"])


@pytest.mark.parametrize("how", [*kmeans.OURS, *kmeans.PEERS])
def test_every_k_means_reaches_an_objective(how, monkeypatch):
    if kmeans.missing(f"{how}: tiny"):
        pytest.skip("not installed")
    monkeypatch.setitem(kmeans.SIZES, "tiny", (2000, 8, 10))
    reached = kmeans.prepare(f"{how}: tiny")()()
    assert reached < 1.2 * kmeans.prepare("ours from rows: tiny")()()


def test_table_names_every_contender(capsys):
    report(RESULTS, [Goal("ours", "peer", time=0.5)], as_json=False)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("ours", "peer", "0.25", "0.67", "yes"))


@pytest.mark.parametrize(("mebibytes", "status"), [(10.0, 0), (9.9, 1)])
def test_limits_of_memory(mebibytes, status, capsys):
    assert report(RESULTS, [], as_json=False, limits=[Limit("ours", mebibytes)]) == status
    assert ("yes" if status == 0 else "no") in capsys.readouterr().out


def test_a_peer_that_is_not_installed_is_skipped(monkeypatch, capsys):
    compared = []

    def compare_nothing(module, contenders, rounds, threads):
        compared.extend(contenders)
        return RESULTS

    monkeypatch.setattr("benchmarks.speed._measure.compare", compare_nothing)
    goals = [Goal("ours", "absent", time=0.0)]
    peers = {"absent": "no_such_package.losses"}
    assert run("losses", lambda c: lambda: None, ["ours", "absent"], goals, [], peers=peers) == 0
    assert compared == ["ours"]
    assert "skipped absent: no_such_package is not installed" in capsys.readouterr().err


def test_memory_of_a_step_is_seen():
    threads = torch.get_num_threads()
    try:
        small = measure(lambda: lambda: torch.ones(1000).sum(), steps=2, threads=1)
        large = measure(lambda: lambda: torch.ones(50, 2**20).sum(), steps=2, threads=1)
    finally:
        torch.set_num_threads(threads)
    assert large.mebibytes - small.mebibytes > 150
    assert large.seconds > small.seconds


def test_a_contender_that_fails_is_reported():
    with pytest.raises(RunError, match="contender 'nobody' failed"):
        compare("benchmarks.speed.contrast", ["nobody"], rounds=1, threads=1)


@pytest.mark.parametrize("module", [contrast, kmeans, losses, scgc, sinkhorn, views])
def test_goals_speak_of_contenders(module):
    for goal in module.GOALS:
        assert {goal.ours, goal.peer} <= set(module.CONTENDERS)
    with pytest.raises(ArgumentError, match="contender must be one of"):
        module.main(["--contender", "nobody"])
    with pytest.raises(ArgumentError, match="--rounds must be at least 1, got 0"):
        module.main(["--rounds", "0"])


def test_both_forms_of_the_contrast_agree(monkeypatch):
    monkeypatch.setattr(contrast, "CONTENDERS", ("dense, n = 200", "exact, n = 200"))
    gradients = []
    for contender in contrast.CONTENDERS:
        torch.manual_seed(0)
        step = contrast.prepare(contender)
        step()
        z = leaf_of(step)
        gradients.append(z.grad)
    torch.testing.assert_close(*gradients, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("objective", ["nt_xent", "info_nce", "supervised_contrast"])
def test_losses_agree_with_their_peers(objective):
    forms = {form for forms in losses.FORMS.values() for form in forms}
    for form in forms:
        for n in losses.FORMS:
            if (module := losses.PEERS.get(f"{form}, n = {n}")) is not None:
                pytest.importorskip(module)
    values = []
    for form in sorted(form for form in forms if form.partition(",")[0] == objective):
        torch.manual_seed(0)
        values.append(losses.prepare(f"{form}, n = 60")())
    assert len(values) >= 2
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=1e-5, atol=0)


def leaf_of(step) -> torch.Tensor:
    """The embeddings that a step closes over, however deep."""
    for cell in step.__closure__:
        value = cell.cell_contents
        if isinstance(value, torch.Tensor) and value.requires_grad:
            return value
        if callable(value) and getattr(value, "__closure__", None):
            return leaf_of(value)
    raise AssertionError("no leaf")


def test_peers_of_sinkhorn_give_the_same_codes(monkeypatch):
    monkeypatch.setattr(sinkhorn, "N", 12)
    monkeypatch.setattr(sinkhorn, "K", 5)
    step = sinkhorn.prepare(sinkhorn.CONTENDERS[0])
    assert step()() == pytest.approx(1, abs=1e-5)
    scores = torch.randn(12, 5).tanh()
    ours = sinkhorn.method("ours", scores, 0.05, 10)()
    torch.testing.assert_close(ours.sum(dim=1), torch.ones(12))
    for name, module in sinkhorn.PEERS.items():
        pytest.importorskip(module)
        peer = sinkhorn.method(name, scores, 0.05, 10)()
        torch.testing.assert_close(ours, peer, rtol=1e-3, atol=1e-5)
