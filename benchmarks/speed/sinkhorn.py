"""Balanced codes against POT and lightly: at most half the time of each peer that stays finite.

Cosines of 4096 samples around 3000 prototypes in 128 dimensions, as many iterations of each. A peer
whose plan is not finite, or whose rows miss their marginal by more than 1 %, has left the range of
floating point (POT then returns an earlier iterate); it is skipped with a message.
"""

from collections.abc import Callable, Sequence

from benchmarks.speed._measure import Goal, Skipped, run

N, D, K = 4096, 128, 3000
SETTINGS = ((0.05, 3), (0.05, 10), (0.01, 3), (0.01, 10), (0.001, 3), (0.001, 10))
PEERS = ("lightly", "POT", "POT in logarithms")


def contender(name: str, epsilon: float, iterations: int) -> str:
    return f"{name}, epsilon = {epsilon}, {iterations} iterations"


CONTENDERS = tuple(contender(name, *setting) for setting in SETTINGS for name in ("ours", *PEERS))
GOALS = tuple(
    Goal(contender("ours", *setting), contender(peer, *setting), time=0.5)
    for setting in SETTINGS
    for peer in PEERS
)


def prepare(contender: str) -> Callable[[], object]:
    import torch
    import torch.nn.functional as F

    name, epsilon_part, iterations_part = contender.split(", ")
    epsilon = float(epsilon_part.removeprefix("epsilon = "))
    iterations = int(iterations_part.removesuffix(" iterations"))
    prototypes = F.normalize(torch.randn(K, D), dim=1)
    noise = 0.5 * torch.randn(N, D) / D**0.5
    z = F.normalize(prototypes[torch.randint(K, (N,))] + noise, dim=1)
    scores = z @ prototypes.T  # (n, k)
    step = codes(name, scores, epsilon, iterations)
    row_sums = step().sum(dim=1)
    if not (row_sums * N / row_sums.numel() - row_sums.new_full((), 1)).abs().max() < 0.01:
        raise Skipped("leaves the range of floating point")
    return step


def codes(name: str, scores, epsilon: float, iterations: int) -> Callable:
    """The step of a contender: codes ``(n, k)`` whose rows sum to 1."""
    import torch

    if name == "ours":
        from common.sinkhorn import balanced_codes

        return lambda: balanced_codes(scores, epsilon=epsilon, iterations=iterations)
    if name == "lightly":
        try:
            from lightly.loss.swav_loss import sinkhorn
        except ImportError:
            raise Skipped("lightly is not installed") from None
        return lambda: sinkhorn(scores, iterations=iterations, epsilon=epsilon)
    try:
        import ot
    except ImportError:
        raise Skipped("POT is not installed") from None
    cost = 1 - scores
    rows, columns = torch.full((N,), 1.0), torch.full((K,), N / K)
    method = "sinkhorn" if name == "POT" else "sinkhorn_log"
    return lambda: ot.sinkhorn(
        rows,
        columns,
        cost,
        epsilon,
        method=method,
        numItermax=iterations,
        stopThr=0,
        warn=False,
    )


def main(argv: Sequence[str] | None = None) -> int:
    return run("sinkhorn", prepare, CONTENDERS, GOALS, argv)


if __name__ == "__main__":
    raise SystemExit(main())
