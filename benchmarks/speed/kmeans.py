"""k-means of embeddings against faiss, scikit-learn, superkmeans and, on CUDA, flash-kmeans and
fastkmeans.

Rows are drawn from a mixture of k / 2 Gaussians of unequal weight, whose features have the
decaying spread of embeddings. "from rows" are 25 iterations of Lloyd from the same k rows: ours
must be within 0.1 % of faiss's objective. "nested" and "superkmeans start" are 8 iterations of ours
on all rows, from clusterings of samples. superkmeans has a start of its own as well ("full": all
rows, 25 iterations; "default": a sample, and fewer). The goal is the time of each peer, at an
objective at most 0.5 % above its own; a peer whose objective is more than 0.5 % above ours sets no
goal for the time.
"""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from benchmarks.speed._measure import Goal, run

if TYPE_CHECKING:
    from torch import Tensor

SIZES = {  # n, d, k
    "50k x 64, 500": (50_000, 64, 500),
    "60k x 384, 1000": (60_000, 384, 1000),
    "200k x 128, 1000": (200_000, 128, 1000),
    "1M x 32, 100": (1_000_000, 32, 100),
}
ITERATIONS = 25
STARTS: dict[str, Literal["nested", "superkmeans"]] = {
    "ours nested": "nested",
    "ours superkmeans start": "superkmeans",
}
OURS = ("ours from rows", "ours nested", "ours superkmeans start")
PEERS = ("faiss from rows", "scikit-learn from rows", "superkmeans full", "superkmeans default")
CUDA_OURS = ("ours triton from rows on cuda", "ours torch from rows on cuda", "ours nested on cuda")
CUDA_PEERS = ("flash-kmeans from rows on cuda", "fastkmeans on cuda")
CONTENDERS = tuple(
    f"{name}: {size}" for size in SIZES for name in (*OURS, *PEERS, *CUDA_OURS, *CUDA_PEERS)
)
PACKAGES = {
    "faiss": "faiss",
    "scikit-learn": "sklearn",
    "superkmeans": "superkmeans",
    "flash-kmeans": "flash_kmeans",
    "fastkmeans": "fastkmeans",
}
GOALS = tuple(
    goal
    for size in SIZES
    for goal in (
        Goal(f"ours from rows: {size}", f"faiss from rows: {size}", time=1.0, objective=1.001),
        *(
            Goal(f"{ours}: {size}", f"{peer}: {size}", time=1.0, objective=1.005)
            for ours, peers in (
                ("ours nested", PEERS),
                ("ours superkmeans start", PEERS),
                ("ours nested on cuda", CUDA_PEERS),
            )
            for peer in peers
        ),
        *(
            Goal(f"{ours}: {size}", f"flash-kmeans from rows on cuda: {size}", time=1.0)
            for ours in CUDA_OURS[:2]
        ),
    )
)


def embeddings(n: int, d: int, k: int) -> "Tensor":
    """Rows ``(n, d)`` of a mixture of ``k`` Gaussians."""
    import torch

    generator = torch.Generator().manual_seed(0)
    spread = (1 + torch.arange(d)) ** -0.5
    centres = torch.randn(k, d, generator=generator)
    share = torch.rand(k, generator=generator) + 0.1
    own = torch.multinomial(share, n, replacement=True, generator=generator)
    return torch.randn(n, d, generator=generator).add_(centres[own]).mul_(spread)


def objective(x: "Tensor", centroids: "Tensor") -> float:
    """Mean squared distance of the rows from their nearest centroids."""
    import torch

    half_norms = centroids.square().sum(dim=1) / 2
    total = 0.0
    for rows in x.split(4096):
        nearest = torch.addmm(half_norms, rows, centroids.T, alpha=-1).argmin(dim=1)
        total += float((rows - centroids[nearest]).square().sum())
    return total / len(x)


def missing(contender: str) -> str | None:
    """What keeps a contender from running here."""
    for package, module in PACKAGES.items():
        if package in contender and not find_spec(module):
            return f"{package} is not installed"
    if " on cuda:" in contender:
        import torch

        if not torch.cuda.is_available():
            return "no CUDA device"
    return None


def prepare(contender: str) -> Callable[[], object]:
    import torch

    how, _, size = contender.partition(": ")
    n, d, k = SIZES[size]
    x = embeddings(n, d, k // 2)
    start = x[torch.randperm(n, generator=torch.Generator().manual_seed(1))[:k]]
    device = "cuda" if how.endswith(" on cuda") else "cpu"
    find = centroids_of(how.removesuffix(" on cuda"), x.to(device), start.to(device))

    def step() -> Callable[[], float]:
        centroids = find().cpu()
        return partial(objective, x, centroids)

    return step


def centroids_of(how: str, x: "Tensor", start: "Tensor") -> Callable[[], "Tensor"]:
    """The contender's k-means as a function of nothing."""
    import torch

    k, d = start.shape
    threads = torch.get_num_threads()
    if how.startswith("ours"):
        from common.kmeans import KMeans

        if how in STARTS:
            kmeans = KMeans(k, init=STARTS[how], max_iter=8, tol=0, seed=1)
        else:
            engine = {"ours triton": "triton", "ours torch": "torch"}.get(how[:-10], "auto")
            kmeans = KMeans(k, init=start, max_iter=ITERATIONS, tol=0, engine=engine)  # type: ignore[arg-type]
        return lambda: kmeans.fit(x).centroids
    if how == "faiss from rows":
        import faiss

        faiss.omp_set_num_threads(threads)
        everything = {"max_points_per_centroid": len(x), "min_points_per_centroid": 1}

        def by_faiss() -> "Tensor":
            peer = faiss.Kmeans(d, k, niter=ITERATIONS, **everything)
            peer.train(x.numpy(), init_centroids=start.numpy())
            return torch.from_numpy(peer.centroids)

        return by_faiss
    if how == "scikit-learn from rows":
        from sklearn.cluster import KMeans as Peer

        lloyd = Peer(k, init=start.numpy(), n_init=1, max_iter=ITERATIONS, tol=0, algorithm="lloyd")
        return lambda: torch.from_numpy(lloyd.fit(x.numpy()).cluster_centers_)
    if how.startswith("superkmeans"):
        from superkmeans import SuperKMeans

        full = {
            "iters": ITERATIONS,
            "sampling_fraction": 1.0,
            "max_points_per_cluster": len(x),
            "early_termination": False,
        }
        options = full if how == "superkmeans full" else {}

        def by_superkmeans() -> "Tensor":
            peer = SuperKMeans(k, d, hierarchical=False, n_threads=threads, **options)
            return torch.from_numpy(peer.train(x.numpy()))

        return by_superkmeans
    if how == "flash-kmeans from rows":
        from flash_kmeans import batch_kmeans_Euclid

        return lambda: batch_kmeans_Euclid(
            x[None], k, max_iters=ITERATIONS, tol=0.0, init_centroids=start[None]
        )[1][0]
    from fastkmeans import FastKMeans

    def by_fastkmeans() -> "Tensor":
        peer = FastKMeans(d, k, niter=ITERATIONS, tol=0.0, max_points_per_centroid=None)
        peer.train(x.cpu().numpy())
        return torch.from_numpy(peer.centroids)

    return by_fastkmeans


def main(argv: Sequence[str] | None = None) -> int:
    return run("kmeans", prepare, CONTENDERS, GOALS, argv, steps=1, missing=missing)


if __name__ == "__main__":
    raise SystemExit(main())
