r"""Assignment to clusters of limited size.

.. math::
    \min_{y} \sum_i \lVert x_i - c_{y_i} \rVert^2
    \quad\text{such that}\quad |\{i : y_i = j\}| \le \text{max\_size for every } j

This is a transportation problem. Its dual has one price per cluster: with the right prices every
row is content with the cluster of least cost plus price. Newton's method on the dual, smoothed less
and less, finds prices that are right but for a few rows; shortest augmenting paths over the
clusters then move these and end at an exact optimum, whatever the prices they start from.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from common.errors import ArgumentError, require_int
from common.kmeans.rows import require_rows

BLOCK_ENTRIES = 1 << 18  # of a block of costs: 2 MiB stay in a core's cache


@torch.no_grad()
def balanced_labels(
    x: Tensor, centroids: Tensor, max_size: int, *, memory_budget: int | None = None
) -> Tensor:
    r"""The assignment of least summed squared distance with at most ``max_size`` rows a cluster.

    Exact up to rounding: no other assignment is better by more than about ``1e-12 n`` times the
    largest squared distance. Deterministic, and computed in float64 on the CPU, so that every
    device gives the same labels. Where the limit does not bind they are the nearest centroids, the
    lower one among equals. For the cosine, pass rows and centroids of unit length.

    50,000 rows in 64 dimensions fill 100 clusters evenly in 2 to 4 seconds on one core; time grows
    with ``n k (d + k)``.

    Args:
        x: ``(n, d)`` rows.
        centroids: ``(k, d)``.
        max_size: rows a cluster may have; ``k * max_size`` must reach *n*. ``ceil(n / k)`` makes
            the clusters as even as they can be, *n* sets no limit.
        memory_budget: bytes that squared distances may take. All ``(n, k)`` of them are kept if
            they fit, otherwise they are computed again where they are needed. None: 256 MiB.

    Returns:
        ``(n,)`` int64 labels on the device of ``x``.

    Raises:
        ArgumentError: an argument of another shape or out of its range, or not finite; says which.

    Source:
        Bradley, Bennett and Demiriz, Constrained k-means clustering, MSR-TR-2000-65 (the problem as
        a minimum cost flow); Ahuja, Magnanti and Orlin, Network Flows, 1993, section 9.7
        (successive shortest paths).

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
        >>> balanced_labels(x, torch.tensor([[0.0], [9.0]]), 2)
        tensor([0, 0, 1, 1])
    """
    require_rows("x", x)
    require_rows("centroids", centroids, width=x.shape[1], letter="k")
    n, k = len(x), len(centroids)
    max_size = require_int("max_size", max_size, 1)
    if k * max_size < n:
        raise ArgumentError(
            f"max_size must be at least n / k, rounded up: {-(-n // k)} for n={n} and k={k}, "
            f"got {max_size}"
        )
    budget = 2**28 if memory_budget is None else require_int("memory_budget", memory_budget, 1)
    costs = _Costs(x, centroids, budget)
    prices = torch.zeros(k, dtype=torch.float64)
    labels = costs.cheapest(prices)
    if labels.bincount(minlength=k).max() > max_size:
        prices = _near_optimal_prices(costs, max_size)
        flow = _Flow(costs, prices, max_size)
        while flow.excess.any():
            flow.augment()
        labels = flow.labels
    return labels.to(x.device)


class _Costs:
    """Half the squared distances ``(n, k)``, less what a row has in common with all centroids.

    Whole numbers stay whole, so that equal distances stay equal: the first centroid is the origin,
    and the scale, which keeps the squares of any finite values in range, is a power of two.
    """

    def __init__(self, x: Tensor, centroids: Tensor, budget: int):
        x, centroids = x.detach().cpu().double(), centroids.detach().cpu().double()
        largest = max(float(x.abs().max()), float(centroids.abs().max()))
        scale = 2.0 ** math.frexp(largest)[1]
        self.x = x / scale - centroids[0] / scale
        self.centroids = centroids / scale - centroids[0] / scale
        norms = self.centroids.norm(dim=1)
        self.half_norms = norms.square() / 2
        self.spread = float((self.x.norm(dim=1).max() + norms.max()) * norms.max())
        self.n, self.k = len(x), len(centroids)
        self.block = max(1, min(BLOCK_ENTRIES, budget // 8) // self.k)
        self.table: Tensor | None = None
        if 8 * self.n * self.k <= budget:
            self.table = torch.cat(list(self.blocks()))

    def rows(self, index: Tensor | slice) -> Tensor:
        """Costs ``(b, k)`` of some rows."""
        if self.table is not None:
            return self.table[index]
        return torch.addmm(self.half_norms, self.x[index], self.centroids.T, alpha=-1)

    def blocks(self) -> Iterator[Tensor]:
        for begin in range(0, self.n, self.block):
            yield self.rows(slice(begin, begin + self.block))

    def cheapest(self, prices: Tensor) -> Tensor:
        """The cluster ``(n,)`` of least cost plus price, the lower one among equals."""
        return torch.cat([(block + prices).argmin(dim=1) for block in self.blocks()])


class _Dual:
    r"""The dual and its derivatives at prices ``(k,)``, the minimum smoothed by a temperature.

    .. math:: T \to 0: \quad \sum_i \min_j (c_{ij} + p_j) - \text{max\_size} \sum_j p_j
    """

    def __init__(self, costs: _Costs, prices: Tensor, temperature: float, max_size: int):
        self.prices = prices
        value, load = prices.new_zeros(()), torch.zeros_like(prices)
        shared = prices.new_zeros(costs.k, costs.k)
        counts = torch.zeros(costs.k, dtype=torch.int64)
        for block in costs.blocks():
            scores = (block + prices).div_(-temperature)
            counts += scores.argmax(dim=1).bincount(minlength=costs.k)
            value -= temperature * scores.logsumexp(dim=1).sum()
            share = scores.softmax(dim=1)
            load += share.sum(dim=0)
            shared += share.T @ share
        self.value = float(value - max_size * prices.sum())
        self.gradient = load - max_size
        self.curvature = (load.diag() - shared) / temperature  # minus the Hessian
        self.free = (prices > 0) | (self.gradient > 0)
        short = (max_size - counts)[prices > 0].clamp_min(0)
        self.misplaced = int((counts - max_size).clamp_min(0).sum() + short.sum())


def _near_optimal_prices(costs: _Costs, max_size: int) -> Tensor:
    """Prices ``(k,)`` of at least 0 at which few rows are misplaced by their cheapest cluster.

    Projected Newton steps, at a temperature that falls until no more rows than clusters are
    misplaced. How near they come decides the time that is left to take, not the result.
    """
    prices = torch.zeros(costs.k, dtype=torch.float64)
    best, fewest = prices, costs.n + 1
    for temperature in (costs.spread / 4**i for i in range(2, 12)):
        at: _Dual | None = _Dual(costs, prices, temperature, max_size)
        for _ in range(20):
            if at is None:
                break
            prices = at.prices
            if at.misplaced < fewest:
                best, fewest = prices, at.misplaced
            if fewest <= costs.k:
                return best
            if at.gradient[at.free].abs().sum() <= at.misplaced / 4:
                break
            at = _newton_step(costs, at, temperature, max_size)
    return best


def _newton_step(costs: _Costs, at: _Dual, temperature: float, max_size: int) -> _Dual | None:
    """The dual after a step uphill, halved until it gains enough; None if none does."""
    gradient = at.gradient[at.free]
    curvature = at.curvature[at.free][:, at.free]
    curvature.diagonal().add_(1e-9 * max_size / temperature)  # equal shifts of all prices are flat
    direction = torch.zeros_like(at.prices)
    direction[at.free] = torch.linalg.solve(curvature, gradient)
    direction.clamp_(-costs.spread, costs.spread)
    for halvings in range(10):
        prices = (at.prices + direction / 2**halvings).clamp_min_(0)
        there = _Dual(costs, prices, temperature, max_size)
        if there.value - at.value >= 1e-4 * float(at.gradient @ (prices - at.prices)) > 0:
            return there
    return None


class _Flow:
    """Labels that are optimal for sizes that are not yet right, and their repair.

    Nodes are the clusters and, last, a sink to which cluster *j* has a flow of at most ``max_size``
    rows. An arc between clusters is the row that is cheapest to move. Every row is in its cheapest
    cluster, one with a price has full flow, and moves along arcs of no reduced cost keep it so;
    once each flow equals the size of its cluster, this is the condition of optimality.
    """

    def __init__(self, costs: _Costs, prices: Tensor, max_size: int):
        self.costs, self.max_size, self.sink = costs, max_size, costs.k
        self.labels = costs.cheapest(prices)
        sizes = self.labels.bincount(minlength=costs.k)
        self.flow = torch.where(prices > 0, max_size, sizes.clamp_max(max_size))
        self.excess = torch.cat([sizes - self.flow, self.flow.sum()[None] - costs.n])
        self.prices = torch.cat([prices, prices.new_zeros(1)])
        self.arcs = prices.new_full((costs.k + 1, costs.k + 1), math.inf)
        self._refresh(range(costs.k))

    def augment(self) -> None:
        """Moves rows along shortest paths that have no node in common, from excess to lack."""
        distance, before = self._shortest_paths()
        self.prices -= distance
        lacking = (self.excess < 0).nonzero()[:, 0]
        touched: set[int] = set()
        for target in lacking[distance[lacking].argsort(stable=True)].tolist():
            path = [target]
            while before[path[-1]] >= 0:
                path.append(before[path[-1]])
            if touched.isdisjoint(path):
                touched.update(path)
                self._push(path[::-1])
        self._refresh(touched - {self.sink})

    def _shortest_paths(self) -> tuple[Tensor, list[int]]:
        """Bellman and Ford's distances by reduced cost, and each node's predecessor or -1."""
        reduced = (self.arcs + self.prices - self.prices[:, None]).clamp_min_(0)
        distance = torch.where(self.excess > 0, 0.0, math.inf).to(reduced)
        before = torch.full_like(self.excess, -1)
        while True:
            through, node = (distance[:, None] + reduced).min(dim=0)
            shorter = through < distance
            if not shorter.any():
                break
            distance = torch.where(shorter, through, distance)
            before = torch.where(shorter, node, before)
        return distance.clamp_max_(distance[distance.isfinite()].max()), before.tolist()

    def _push(self, path: list[int]) -> None:
        """Moves as many rows along the path as its ends and its arcs allow."""
        amount = min(int(self.excess[path[0]]), -int(self.excess[path[-1]]))
        moves, flows = [], []
        for source, target in pairwise(path):
            if target == self.sink:
                flows.append((source, 1))
                amount = min(amount, self.max_size - int(self.flow[source]))
            elif source == self.sink:
                flows.append((target, -1))
                amount = min(amount, int(self.flow[target]))
            else:
                members, extra = self._moves(source)
                equal = extra[:, target] <= self.arcs[source, target] + 1e-15 * self.costs.spread
                moves.append((members[equal], target))
                amount = min(amount, len(moves[-1][0]))
        for members, target in moves:
            self.labels[members[:amount]] = target
        for cluster, sign in flows:
            self.flow[cluster] += sign * amount
        self.excess[path[0]] -= amount
        self.excess[path[-1]] += amount

    def _moves(self, source: int) -> tuple[Tensor, Tensor]:
        """The members ``(m,)`` of a cluster, and the extra cost ``(m, k)`` of moving each."""
        members = (self.labels == source).nonzero()[:, 0]
        cost = self.costs.rows(members)
        return members, cost - cost[:, source, None]

    def _refresh(self, clusters: Iterable[int]) -> None:
        """Finds the cheapest moves out of clusters whose members changed."""
        for source in clusters:
            members, extra = self._moves(source)
            self.arcs[source, :-1] = extra.amin(dim=0) if len(members) else math.inf
        self.arcs[:-1, -1] = torch.where(self.flow < self.max_size, 0.0, math.inf)
        self.arcs[-1, :-1] = torch.where(self.flow > 0, 0.0, math.inf)
