r"""k-means: Lloyd's iteration on torch tensors, every restart in one batch.

.. math::
    \min_{c_1 \dots c_k} \sum_i w_i \min_j \lVert x_i - c_j \rVert^2

Nearest centroids and means in turn, until the centroids rest. The spherical form (``cosine``) is
the same iteration on rows of unit length whose means are put back on the sphere, since there
:math:`\lVert x - c \rVert^2 = 2 (1 - \cos(x, c))`.
"""

import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from operator import itemgetter
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from common.errors import ArgumentError, require, require_int

Metric = Literal["euclidean", "cosine"]
Engine = Literal["auto", "torch", "faiss"]
Nearest = Callable[[Tensor], tuple[Tensor, Tensor]]


class KMeans:
    """k-means clustering of the rows of a tensor, on the tensor's device.

    Distances are evaluated block by block and never as one ``(n, k)`` matrix; besides that there is
    one working copy of ``x`` (scaled and centred, so that neither large offsets nor values such as
    1e30 cost precision) and for each row one or two dozen numbers, most of them while seeding.
    float16 and bfloat16 come in and float32 is computed with; float64 stays float64. Sums over a
    cluster do not lose precision with the number of rows. Autocast is switched off inside.

    In a distributed job each rank clusters the rows it was given: nothing is communicated.

    Args:
        n_clusters: *k*.
        metric: ``"euclidean"``, or ``"cosine"`` for spherical k-means, where centroids have unit
            length and a zero row, having no direction, weighs nothing and gets label 0.
        init: ``"k-means++"`` (greedy: the best of 2 + ln k draws in each round), ``"random"``
            (rows drawn without replacement), or the ``(k, d)`` centroids to start from.
        n_init: number of restarts, of which the one with the lowest objective is kept. Centroids
            that are given are run once.
        max_iter: limit of the iterations of one restart.
        tol: a restart ends when the squared movement of all its centroids is at most ``tol`` times
            the mean variance of the features.
        engine: what finds the nearest centroids. ``"torch"`` runs on any device, ``"faiss"`` on
            float32 rows on the CPU, in blocks of its own size; everything else is the same code,
            so that both give the same result up to rounding. ``"auto"`` is decided by
            :func:`choose_engine`.
        seed: of the draws. None takes one from torch's global generator, which is touched in no
            other case. Equal seeds give equal draws on every device.
        memory_budget: bytes for a block of distances. None: 4 MiB on the CPU, where a block then
            stays in the cache, and 256 MiB elsewhere.

    Attributes:
        centroids: ``(k, d)``, float64 for float64 rows and else float32.
        labels: ``(n,)`` int64, the nearest centroid of each row of the last ``fit``.
        inertia: the objective: weighted sum of squared distances, for cosine of 1 - cosine.
        n_iter: iterations of the restart that was kept.
        engine_used: ``"torch"`` or ``"faiss"``.

    A cluster that is left without weight restarts from the row with the largest weighted cost. So a
    cluster ends up empty only if there are fewer than ``n_clusters`` distinct rows (its centroid
    then stays where it is) or ``max_iter`` came first.

    Raises:
        ArgumentError: an argument out of its range, here or in :meth:`fit`; rows or weights that
            are not finite; more clusters than rows; ``init``, or rows for :meth:`predict`, more
            than 2^60 times as large as the rows of :meth:`fit`. A ``fit`` that fails leaves the
            attributes as they were.

    Source:
        Lloyd, 1982; Arthur and Vassilvitskii, k-means++, SODA 2007; Dhillon and Modha, Concept
        decompositions for large sparse text data using clustering, Machine Learning 2001.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [0.0, 2.0], [9.0, 0.0], [9.0, 2.0]])
        >>> kmeans = KMeans(2, n_init=5, seed=0).fit(x)
        >>> kmeans.inertia
        4.0
        >>> kmeans.labels[0] == kmeans.labels[1], kmeans.labels[0] == kmeans.labels[2]
        (tensor(True), tensor(False))
        >>> KMeans(2, init=x[:2]).fit(x).centroids
        tensor([[4.5000, 0.0000],
                [4.5000, 2.0000]])
    """

    centroids: Tensor
    labels: Tensor
    inertia: float
    n_iter: int
    engine_used: Literal["torch", "faiss"]

    def __init__(
        self,
        n_clusters: int,
        *,
        metric: Metric = "euclidean",
        init: Literal["k-means++", "random"] | Tensor = "k-means++",
        n_init: int = 1,
        max_iter: int = 300,
        tol: float = 1e-4,
        engine: Engine = "auto",
        seed: int | None = None,
        memory_budget: int | None = None,
    ):
        require(metric in ("euclidean", "cosine"), "metric", metric, "euclidean or cosine")
        require(engine in ("auto", "torch", "faiss"), "engine", engine, "auto, torch or faiss")
        drawn = isinstance(init, str) and init in ("k-means++", "random")
        expected = "k-means++, random or a (k, d) tensor of centroids"
        require(drawn or isinstance(init, Tensor), "init", init, expected)
        require(tol >= 0, "tol", tol, "at least 0")
        self.n_clusters = require_int("n_clusters", n_clusters, 1)
        self.metric = metric
        self.init = init
        self.n_init = require_int("n_init", n_init, 1)
        self.max_iter = require_int("max_iter", max_iter, 1)
        self.tol = tol
        self.engine = engine
        self.seed = seed
        if memory_budget is not None:
            memory_budget = require_int("memory_budget", memory_budget, 1)
        self.memory_budget = memory_budget

    @torch.no_grad()
    def fit(self, x: Tensor, weights: Tensor | None = None) -> Self:
        """Finds the centroids of ``(n, d)`` rows with ``(n,)`` non-negative weights (default 1)."""
        _require_rows("x", x)
        if self.n_clusters > len(x):
            raise ArgumentError(
                f"n_clusters must be at most the number of rows, "
                f"got n_clusters={self.n_clusters} for n={len(x)}"
            )
        with torch.autocast(x.device.type, enabled=False):
            weights = _checked_weights(weights, x)
            frame = _Frame(x, self.metric)
            x = frame.inwards("x", x)
            if frame.spherical:
                weights = weights * x.any(dim=1)
                if not weights.any():
                    raise ArgumentError("x must have a non-zero row of positive weight for cosine")
            heaviest = weights.max()
            weights = weights / heaviest
            if not frame.spherical:
                x = frame.center(x, weights)
            engine, nearest = self._search(x)
            restarts = self._restarts(frame, x, weights, nearest)
            _, centroids, n_iter = min(restarts, key=itemgetter(0))

            self._frame, self.engine_used, self.n_iter = frame, engine, n_iter
            self.centroids = frame.outwards(centroids)
            centroids = frame.inwards("centroids", self.centroids)
            self.labels = frame.labels(x, centroids, nearest)
            objective = _objective(x, weights, centroids, self.labels, self._budget(x))
            self.inertia = frame.outward_cost(objective * float(heaviest))
        return self

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Nearest centroid ``(n,)`` of each of ``(n, d)`` rows."""
        if not hasattr(self, "centroids"):
            raise ArgumentError("predict needs centroids: call fit first")
        _require_rows("x", x, width=self.centroids.shape[1])
        with torch.autocast(x.device.type, enabled=False):
            centroids = self._frame.inwards("centroids", self.centroids.to(x.device))
            x = self._frame.inwards("x", x)
            _, nearest = self._search(x)
            return self._frame.labels(x, centroids, nearest)

    def fit_predict(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """:meth:`fit`, then ``labels``."""
        return self.fit(x, weights).labels

    def _restarts(
        self, frame: "_Frame", x: Tensor, weights: Tensor, nearest: Nearest
    ) -> Iterator[tuple[float, Tensor, int]]:
        """Objective, centroids ``(k, d)`` and iterations of the best of each batch of restarts."""
        for start in self._starts(frame, x, weights):
            centroids, n_iter = self._lloyd(x, weights, start, nearest)
            objectives = nearest(centroids)[1] @ weights  # (r,)
            best = int(objectives.argmin())
            yield float(objectives[best]), centroids[best], int(n_iter[best])

    def _starts(self, frame: "_Frame", x: Tensor, weights: Tensor) -> Iterator[Tensor]:
        """The restarts' centroids ``(r, k, d)``, as many at once as the memory budget holds."""
        if isinstance(self.init, Tensor):
            _require_rows("init", self.init, width=x.shape[1], length=self.n_clusters)
            init = frame.inwards("init", self.init.to(x.device))
            if frame.spherical and not init.any(dim=1).all():
                raise ArgumentError("init must have no zero row for cosine")
            yield init[None]
            return
        n, k = len(x), self.n_clusters
        seed = self.seed if self.seed is not None else int(torch.randint(2**63 - 1, ()))
        generator = torch.Generator().manual_seed(seed)
        at_once = max(1, self._budget(x) // (x.element_size() * max(12 * n, 256 * k)))
        if self.init == "random":
            for done in range(0, self.n_init, at_once):
                size = (min(at_once, self.n_init - done), n)
                keys = torch.rand(size, generator=generator, dtype=torch.float64)
                keys = keys.log().to(x) / weights  # (r, n), weighted draw without replacement
                yield x[keys.topk(k).indices]
            return
        trials = 2 + int(math.log(k))
        draws = torch.randint(2**31, (self.n_init, k, trials), generator=generator)
        for part in draws.to(x.device).split(at_once):
            yield _plus_plus(x, weights, part)

    def _lloyd(
        self, x: Tensor, weights: Tensor, start: Tensor, nearest: Nearest
    ) -> tuple[Tensor, Tensor]:
        """Iterates restarts ``(r, k, d)`` until each has come to rest; also gives their counts."""
        share = weights / weights.sum()
        variance = share @ _squared_norms(x) - (share @ x).square().sum()
        limit = self.tol * (variance / x.shape[1]).clamp_min(0)
        centroids = start.clone()
        n_iter = torch.zeros(len(start), dtype=torch.int64)
        active = torch.arange(len(start), device=x.device)
        for _ in range(self.max_iter):
            before = centroids[active]
            after = _step(x, weights, before, nearest, spherical=self.metric == "cosine")
            centroids[active] = after
            n_iter[active.cpu()] += 1
            movement = (after - before).square().sum(dim=(1, 2))
            active = active[movement > limit]
            if not len(active):
                break
        return centroids, n_iter

    def _search(self, x: Tensor) -> tuple[Literal["torch", "faiss"], Nearest]:
        """The engine for rows as :meth:`_Frame.inwards` gives them, and its search over them."""
        engine = choose_engine(x, self.n_clusters) if self.engine == "auto" else self.engine
        if engine == "faiss":
            return engine, _faiss_nearest(x)
        return engine, partial(_nearest, x, _squared_norms(x), self._budget(x))

    def _budget(self, x: Tensor) -> int:
        return self.memory_budget or (4 if x.device.type == "cpu" else 256) * 2**20


class _Frame:
    """Precision, scale (a power of two) and origin ``(d,)`` that the arithmetic takes place in.

    For cosine the rows are put on the unit sphere instead.
    """

    def __init__(self, x: Tensor, metric: Metric):
        self.dtype = _precision(x)
        self.spherical = metric == "cosine"
        largest = max(_largest(x), torch.finfo(self.dtype).tiny)
        self.scale = 2.0 ** (math.frexp(largest)[1] - 1)
        self.origin = torch.zeros(x.shape[1], dtype=self.dtype, device=x.device)

    def center(self, x: Tensor, weights: Tensor) -> Tensor:
        """Makes the mean of the scaled rows the origin; changes ``x``."""
        self.origin = weights @ x / weights.sum()
        return x.sub_(self.origin)

    def inwards(self, name: str, x: Tensor) -> Tensor:
        """A copy of the rows, the only one that is made."""
        rows = x.to(self.dtype, copy=True)
        if self.spherical:
            _to_unit_(rows)
        else:
            rows.div_(self.scale).sub_(self.origin.to(x.device))
        if not torch.linalg.vector_norm(rows, dim=1).amax() < 2.0**60:
            raise ArgumentError(
                f"{name} must be at most 2^60 times as large as the rows of fit, "
                f"got values of up to {_largest(x):.3g}"
            )
        return rows

    def outwards(self, centroids: Tensor) -> Tensor:
        return centroids if self.spherical else (centroids + self.origin) * self.scale

    def outward_cost(self, objective: float) -> float:
        return objective / 2 if self.spherical else objective * self.scale * self.scale

    def labels(self, x: Tensor, centroids: Tensor, nearest: Nearest) -> Tensor:
        """Labels ``(n,)``; a row without a direction gets 0."""
        labels = nearest(centroids[None])[0][0]
        return labels * x.any(dim=1) if self.spherical else labels


def choose_engine(x: Tensor, n_clusters: int) -> Literal["torch", "faiss"]:
    """The faster engine for ``(n, d)`` rows: the rule behind ``engine="auto"``.

    faiss, if it is installed, for float32 rows on the CPU from 50 clusters and 1e8 multiplications
    (n d k) an iteration on. Time of faiss over torch for one search, least of 6 to 12, on 1 and on
    2 cores of an x86-64 server with AVX-512, restarts batched as :class:`KMeans` does it:

    ========================= ====== ======   ========================= ====== ======
    (n, d, k), restarts       1 core 2 cores  (n, d, k), restarts       1 core 2 cores
    ========================= ====== ======   ========================= ====== ======
    (1797, 10, 10), 20        1.25   1.23     (50000, 64, 50), 1        0.83   0.89
    (9298, 10, 10), 7         1.10   0.97     (50000, 16, 100), 1       0.58   0.66
    (3025, 1870, 3), 20       6.70   7.64     (50000, 64, 500), 1       0.80   0.79
    (50000, 64, 20), 1        1.14   1.22     (60000, 384, 1000), 1     0.88   0.91
    ========================= ====== ======   ========================= ====== ======

    Below 1e8 multiplications an iteration takes a few milliseconds, and importing faiss costs more
    than it saves. Never on macOS, where faiss and torch each bring an OpenMP runtime, and the two
    in one process crash.

    Example:
        >>> choose_engine(torch.zeros(1797, 10), n_clusters=10)
        'torch'
    """
    eligible = x.device.type == "cpu" and x.dtype != torch.float64 and sys.platform != "darwin"
    worthwhile = n_clusters >= 50 and x.numel() * n_clusters >= 1e8
    return "faiss" if eligible and worthwhile and find_spec("faiss") else "torch"


def _step(
    x: Tensor, weights: Tensor, centroids: Tensor, nearest: Nearest, *, spherical: bool
) -> Tensor:
    """One iteration: rows to their nearest centroid, centroids ``(r, k, d)`` to their mean."""
    tiny = torch.finfo(x.dtype).tiny
    labels, cost = nearest(centroids)  # (r, n)
    sums, mass = _cluster_sums(x, weights, labels, centroids.shape[1])  # (r, k, d), (r, k)
    size = sums.norm(dim=-1) if spherical else mass
    means = (sums / size.clamp_min(tiny)[..., None]).to(x)
    moved = torch.where((size > tiny)[..., None], means, centroids)
    empty = mass == 0
    return _reseed(x, moved, empty, cost * weights) if empty.any() else moved


def _cluster_sums(
    x: Tensor, weights: Tensor, labels: Tensor, n_clusters: int
) -> tuple[Tensor, Tensor]:
    """Weighted sum ``(r, k, d)`` and weight ``(r, k)`` of the clusters of ``(r, n)`` labels.

    Rows are added up in sorted order, without atomics: the same bits in every run. Up to 64 are
    added in the precision of ``x`` and these sums in float64, so that the millionth row still
    counts in full. (MPS has no float64; there the 64 alone have to do.)
    """
    restarts, n = labels.shape
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    clusters = torch.arange(restarts * n_clusters, device=x.device)
    ordered, order = (labels + clusters[::n_clusters, None]).flatten().sort(stable=True)
    rows = order % n
    begins = torch.searchsorted(ordered, clusters)
    steps = torch.arange(0, len(rows), 64, device=x.device)
    chunks = torch.cat([begins, steps]).sort().values

    def add(table: Tensor, per_row: Tensor | None = None) -> Tensor:
        parts = embedding_bag(rows, table, chunks, mode="sum", per_sample_weights=per_row)
        each = torch.arange(len(parts), device=x.device)
        total = embedding_bag(each, parts.to(wide), torch.searchsorted(chunks, begins), mode="sum")
        return total.view(restarts, n_clusters, -1)

    return add(x, weights[rows]), add(weights.to(wide)[:, None])[..., 0]


def _reseed(x: Tensor, centroids: Tensor, empty: Tensor, cost: Tensor) -> Tensor:
    """Puts the j-th empty cluster of a restart on the row with the j-th largest cost above 0."""
    largest, rows = cost.topk(int(empty.sum(dim=1).max()))  # (r, m)
    rank = (empty.long().cumsum(dim=1) - 1).clamp(0, rows.shape[1] - 1)  # (r, k)
    place = empty & (largest.gather(1, rank) > 0)
    return torch.where(place[..., None], x[rows.gather(1, rank)], centroids)


def _nearest(x: Tensor, norms: Tensor, budget: int, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest centroid and its squared distance, ``(r, n)`` each, for restarts ``(r, k, d)``."""
    restarts, k, d = centroids.shape
    flat = centroids.reshape(-1, d)
    half_norms = flat.square().sum(dim=1, keepdim=True) / 2
    labels = torch.empty(restarts, len(x), dtype=torch.int64, device=x.device)
    scores = torch.empty(restarts, len(x), dtype=x.dtype, device=x.device)
    block = max(1, budget // (x.element_size() * len(flat)))
    for begin in range(0, len(x), block):
        part = slice(begin, begin + block)
        score = torch.addmm(half_norms, flat, x[part].T, alpha=-1).view(restarts, k, -1)
        scores[:, part], labels[:, part] = score.min(dim=1)
    return labels, (2 * scores + norms).clamp_min_(0)


def _faiss_nearest(x: Tensor) -> Nearest:
    """:func:`_nearest` by faiss's exact search over float32 rows on the CPU."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        raise ArgumentError(
            f"engine 'faiss' takes float32 or half rows on the CPU, got {x.dtype} on {x.device}"
        )
    try:
        import faiss
    except ImportError as missing:
        raise ArgumentError("engine 'faiss' needs the package faiss-cpu or faiss-gpu") from missing
    rows = x.contiguous().numpy()

    def nearest(centroids: Tensor) -> tuple[Tensor, Tensor]:
        found: list[tuple[Any, Any]] = [faiss.knn(rows, c.numpy(), 1) for c in centroids]
        labels = torch.stack([torch.from_numpy(index)[:, 0] for _, index in found])
        cost = torch.stack([torch.from_numpy(distance)[:, 0] for distance, _ in found])
        return labels, cost.clamp_min_(0)

    return nearest


def _plus_plus(x: Tensor, weights: Tensor, draws: Tensor) -> Tensor:
    """Greedy k-means++ seeds ``(r, k, d)`` from random integers ``(r, k, trials)``.

    Each round draws ``trials`` rows in proportion to their weighted cost and keeps the one that
    lowers the objective most. A row is drawn once; when every row has cost 0, the last one is.
    """
    restarts, n_clusters, _ = draws.shape
    each = torch.arange(restarts, device=x.device)
    norms = _squared_norms(x)
    chosen = torch.empty(restarts, n_clusters, dtype=torch.int64, device=x.device)
    cost = torch.full((restarts, len(x)), math.inf, dtype=x.dtype, device=x.device)
    for j in range(n_clusters):
        mass = cost * weights if j else weights.expand(restarts, -1)
        rows = _draw(mass, draws[:, j] if j else draws[:, j, :1])  # (r, trials)
        distances = torch.addmm(norms, x[rows.flatten()], x.T, alpha=-2).view(*rows.shape, -1)
        costs = torch.minimum(cost[:, None], (distances + norms[rows, None]).clamp_min_(0))
        best = (costs @ weights).argmin(dim=1)
        cost, chosen[:, j] = costs[each, best], rows[each, best]
        cost[each, chosen[:, j]] = 0
    return x[chosen]


def _draw(mass: Tensor, draws: Tensor) -> Tensor:
    """Rows ``(r, t)`` in proportion to ``(r, n)`` masses, from 31-bit random integers ``(r, t)``.

    The distribution is summed up in integers: exact for any n, and the same on every device.
    """
    levels = 2**62 // mass.shape[1]
    largest = mass.amax(dim=1, keepdim=True).clamp_min(torch.finfo(mass.dtype).tiny)
    cumulated = (mass / largest * levels).long().cumsum(dim=1)  # (r, n)
    high, low = cumulated[:, -1:] >> 31, cumulated[:, -1:] & (2**31 - 1)
    target = draws * high + (draws * low >> 31)  # draws * total / 2^31 without overflow
    return torch.searchsorted(cumulated, target, right=True).clamp_max_(mass.shape[1] - 1)


def _objective(x: Tensor, weights: Tensor, centroids: Tensor, labels: Tensor, budget: int) -> float:
    """Weighted sum of squared distances, from the differences themselves."""
    block = max(1, budget // (x.element_size() * x.shape[1]))
    parts = zip(x.split(block), weights.split(block), labels.split(block), strict=True)
    return sum(float(w @ (rows - centroids[own]).square().sum(dim=1)) for rows, w, own in parts)


def _squared_norms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=1).square()


def _to_unit_(x: Tensor) -> None:
    """Brings rows to unit length in place; a zero row stays zero."""
    for order in (math.inf, 2):  # the first keeps the squares in range
        norms = torch.linalg.vector_norm(x, order, dim=-1, keepdim=True)
        x.div_(norms.clamp_min_(torch.finfo(x.dtype).tiny))


def _largest(x: Tensor) -> float:
    """The largest absolute value; NaN if there is one."""
    return float(torch.stack(x.aminmax()).abs().max())


def _precision(x: Tensor) -> torch.dtype:
    """What rows are computed with."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _checked_weights(weights: Tensor | None, x: Tensor) -> Tensor:
    """``(n,)`` weights in the precision of the arithmetic."""
    if weights is None:
        return torch.ones(len(x), dtype=_precision(x), device=x.device)
    if weights.shape != x.shape[:1]:
        raise ArgumentError(
            f"weights must have shape ({len(x)},), one for each row of x, "
            f"got {tuple(weights.shape)}"
        )
    weights = weights.to(x.device, _precision(x))
    if not weights.isfinite().all() or weights.min() < 0 or not weights.any():
        raise ArgumentError("weights must be finite, none negative and not all zero")
    return weights


def _require_rows(
    name: str, x: Tensor, *, width: int | None = None, length: int | None = None
) -> None:
    """Raises ArgumentError unless ``x`` is ``(length, width)`` finite floating-point numbers."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.layout != torch.strided:
        came = f"{x.dtype}, {x.layout}" if isinstance(x, Tensor) else type(x).__name__
        raise ArgumentError(f"{name} must be a dense floating-point tensor, got {came}")
    fits = x.ndim == 2 and width in (None, x.shape[1]) and length in (None, len(x))
    if not fits or not x.numel():
        expected = f"({length or 'n'}, {width or 'd'})"
        raise ArgumentError(f"{name} must have shape {expected}, got {tuple(x.shape)}")
    if not math.isfinite(_largest(x)):
        raise ArgumentError(f"{name} must be finite, got NaN or infinity")
