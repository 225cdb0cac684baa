"""Exact contrast against block contrast as the graph grows (the main claim of PamC).

Loss and gradient on random embeddings, 10 dimensions, 10 clusters, about 5 edges a node. The exact
loss must grow about fourfold with each doubling of the nodes, the block contrast about twofold, and
at 8000 nodes the block contrast must be at least ten times faster than the plain dense form.
"""

import json
from collections.abc import Callable
from dataclasses import asdict

from benchmarks.speed._measure import Goal, compare, measure, parser, report
from common.errors import ArgumentError

MODULE = "benchmarks.speed.contrast"
SIZES = (1000, 2000, 4000, 8000, 16000)
FORMS = ("dense", "exact", "block")
CONTENDERS = tuple(f"{form}, n = {n}" for n in SIZES for form in FORMS)
GOALS = (
    *(Goal(f"block, n = {n}", f"dense, n = {n}", time=0.1 if n == 8000 else None) for n in SIZES),
    *(Goal(f"exact, n = {n}", f"dense, n = {n}", time=1.0, memory=1.0) for n in SIZES[1:]),
)


def prepare(contender: str) -> Callable[[], object]:
    if contender not in CONTENDERS:
        raise ArgumentError(f"contender must be one of {'; '.join(CONTENDERS)}; got {contender!r}")
    import torch
    import torch.nn.functional as F

    from common.adjacency import row_normalized_adjacency
    from common.losses import BlockContrast, NeighborContrast

    form, _, size = contender.partition(", n = ")
    n = int(size)
    adjacency = row_normalized_adjacency(torch.randint(n, (2, 5 * n // 2)), n)
    z = torch.randn(n, 10, requires_grad=True)
    clusters = torch.randint(10, (n,))

    def dense_loss() -> torch.Tensor:
        unit = F.normalize(z, dim=1)
        e = (unit @ unit.T).fill_diagonal_(0).exp()
        return -((gamma * e).sum(dim=1) / e.sum(dim=1) + 1e-8).log().mean()

    if form == "dense":
        gamma = adjacency.to_dense()
        return lambda: dense_loss().backward()
    if form == "exact":
        exact = NeighborContrast(adjacency)
        return lambda: exact(z).backward()
    block = BlockContrast(adjacency, n_clusters=10)
    return lambda: block(z, clusters).backward()


def main(argv: list[str] | None = None) -> int:
    args = parser("contrast", "exact against block contrast over n").parse_args(argv)
    if args.contender:
        import common.losses  # noqa: F401  (imports are not part of what is measured)

        result = measure(lambda: prepare(args.contender), steps=7, threads=args.threads)
        print(json.dumps(asdict(result)))
        return 0
    return report(compare(MODULE, CONTENDERS, args.rounds, args.threads), GOALS, args.json)


if __name__ == "__main__":
    raise SystemExit(main())
