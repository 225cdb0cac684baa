"""Exact contrast against block contrast as the graph grows (the main claim of PamC).

Loss and gradient on random embeddings, 10 dimensions, 10 clusters, about 5 edges a node. At 8000
nodes the block contrast must be at least ten times faster than the plain dense form, and it must
not grow more than threefold with a doubling of the nodes, where the exact loss grows fourfold.
"""

from collections.abc import Callable, Sequence

from benchmarks.speed._measure import Goal, run

SIZES = (1000, 2000, 4000, 8000, 16000)
FORMS = ("dense", "exact", "block")
CONTENDERS = tuple(f"{form}, n = {n}" for n in SIZES for form in FORMS)
GOALS = (
    *(Goal(f"block, n = {n}", f"dense, n = {n}", time=0.1 if n == 8000 else None) for n in SIZES),
    *(Goal(f"exact, n = {n}", f"dense, n = {n}", time=1.0, memory=1.0) for n in SIZES[1:]),
    *(
        Goal(f"{form}, n = {2 * n}", f"{form}, n = {n}", time=3.0 if form == "block" else None)
        for form in FORMS
        for n in SIZES[:-1]
    ),
)


def prepare(contender: str) -> Callable[[], object]:
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


def main(argv: Sequence[str] | None = None) -> int:
    return run("contrast", prepare, CONTENDERS, GOALS, argv, steps=7)


if __name__ == "__main__":
    raise SystemExit(main())
