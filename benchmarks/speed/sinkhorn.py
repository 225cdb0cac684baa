"""Balanced codes against POT and lightly: at most half the time of each peer that stays finite.

Cosines of 4096 samples around 3000 prototypes in 128 dimensions, as many iterations of each. The
objective is 1 plus the largest relative error of a row's sum: a peer that left the range of
floating point, after which POT returns an earlier iterate, sets no goal.
"""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.speed._measure import Goal, run

N, D, K = 4096, 128, 3000
SETTINGS = ((0.05, 3), (0.05, 10), (0.01, 3), (0.01, 10), (0.001, 3), (0.001, 10))
PEERS = {"lightly": "lightly.loss.swav_loss", "POT": "ot", "POT in logarithms": "ot"}


def contender(name: str, epsilon: float, iterations: int) -> str:
    return f"{name}, epsilon = {epsilon}, {iterations} iterations"


CONTENDERS = tuple(contender(name, *setting) for setting in SETTINGS for name in ("ours", *PEERS))
MODULES = {contender(name, *setting): PEERS[name] for setting in SETTINGS for name in PEERS}
GOALS = tuple(
    Goal(contender("ours", *setting), contender(peer, *setting), time=0.5, objective=1.01)
    for setting in SETTINGS
    for peer in PEERS
)


def prepare(contender: str) -> Callable[[], Callable[[], float]]:
    import torch
    import torch.nn.functional as F

    name, setting, iterations = contender.split(", ")
    prototypes = F.normalize(torch.randn(K, D), dim=1)
    noise = 0.5 * torch.randn(N, D) / D**0.5
    z = F.normalize(prototypes[torch.randint(K, (N,))] + noise, dim=1)
    codes = method(name, z @ prototypes.T, float(setting.split()[-1]), int(iterations.split()[0]))

    def step() -> Callable[[], float]:
        q = codes()
        return lambda: 1 + (q.sum(dim=1) - 1).abs().max().nan_to_num(torch.inf).item()

    return step


def method(name: str, scores: Any, epsilon: float, iterations: int) -> Callable[[], Any]:
    """Codes ``(n, k)``, rows sum to 1, of ``(n, k)`` scores."""
    if name == "ours":
        from common.sinkhorn import balanced_codes

        return lambda: balanced_codes(scores, epsilon=epsilon, iterations=iterations)
    if name == "lightly":
        from lightly.loss.swav_loss import sinkhorn

        return lambda: sinkhorn(scores, iterations=iterations, epsilon=epsilon)

    import ot

    cost = 1 - scores
    options = {"method": "sinkhorn" if name == "POT" else "sinkhorn_log", "warn": False}
    rows, columns = scores.new_ones(N), scores.new_full((K,), N / K)
    return lambda: ot.sinkhorn(
        rows, columns, cost, epsilon, numItermax=iterations, stopThr=0, **options
    )


def main(argv: Sequence[str] | None = None) -> int:
    return run("sinkhorn", prepare, CONTENDERS, GOALS, argv, peers=MODULES)


if __name__ == "__main__":
    raise SystemExit(main())
