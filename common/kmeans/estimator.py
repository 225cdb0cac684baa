r"""k-means: Lloyd's iteration on torch tensors, every restart in one batch.

.. math::
    \min_{c_1 \dots c_k} \sum_i w_i \min_j \lVert x_i - c_j \rVert^2

Nearest centroids and means in turn, until the centroids rest. The spherical form (``cosine``) is
the same iteration on rows of unit length whose means are put back on the sphere, since there
:math:`\lVert x - c \rVert^2 = 2 (1 - \cos(x, c))`.
"""

import math
from collections.abc import Iterator
from operator import itemgetter
from typing import Literal, Self

import torch
from torch import Generator, Tensor
from torch.nn.functional import embedding_bag

from common.errors import ArgumentError, require, require_int
from common.kmeans.balanced import balanced_labels
from common.kmeans.engines import SEARCHES, Engine, choose_engine, superkmeans_centroids
from common.kmeans.frame import Frame
from common.kmeans.rows import require_rows
from common.kmeans.seeding import plus_plus, random_rows
from common.kmeans.sources import Ranks, Readable, Rows, Source

Metric = Literal["euclidean", "cosine"]
Init = Literal["k-means++", "random", "nested", "superkmeans"]

NESTED = (16, 64, 256)  # rows a cluster of the samples that init="nested" goes through


class KMeans:
    """k-means clustering of the rows of a tensor, on the tensor's device.

    Distances are evaluated block by block and never as one ``(n, k)`` matrix; besides that there is
    one working copy of ``x`` (scaled and centred, so that neither large offsets nor values such as
    1e30 cost precision) and for each row one or two dozen numbers, most of them while seeding.
    float16 and bfloat16 come in and float32 is computed with; float64 stays float64. Sums over a
    cluster do not lose precision with the number of rows. Autocast is switched off inside.

    **Rows larger than memory.** Instead of a tensor, :meth:`fit` and :meth:`predict` take an array,
    a memory-mapped array, a function that returns an iterator of chunks, or an iterable of chunks
    that can be read again. Chunks (tensors or arrays) are read anew in each pass, one at a time: a
    pass an iteration, two for each centroid with ``"k-means++"`` and a few with any other ``init``.
    Only the numbers for each row stay in memory. The result is that of the same rows in memory, up
    to rounding. (An array in memory is used as a tensor.)

    Args:
        n_clusters: *k*.
        metric: ``"euclidean"``, or ``"cosine"`` for spherical k-means, where centroids have unit
            length and a zero row, having no direction, weighs nothing and gets label 0.
        init: where to start. ``"k-means++"`` (greedy: the best of 2 + ln k draws in each round),
            ``"random"`` (rows drawn without replacement), ``"nested"`` (for many rows: k-means++ on
            a sample of 16 rows a cluster, then k-means on this and on samples of 64 and 256; leaves
            few iterations to do on all rows), ``"superkmeans"`` (the centroids of that package,
            whose own objective is a few percent off, as a start), or the ``(k, d)`` centroids.
        n_init: number of restarts, of which the one with the lowest objective is kept. Centroids
            that are given are run once.
        max_iter: limit of the iterations of one restart.
        tol: a restart ends when the squared movement of all its centroids is at most ``tol`` times
            the mean variance of the features.
        max_cluster_size: rows a cluster may have; ``ceil(n / k)`` makes all as even as they can be.
            Rows then go where the sum of squared distances is least, see
            :func:`common.kmeans.balanced_labels`. :meth:`predict` knows no such limit.
        engine: what finds the nearest centroids. ``"torch"`` runs on any device, ``"faiss"`` on
            float32 rows on the CPU, in blocks of its own size, ``"triton"`` is a kernel for float32
            rows on CUDA whose distances stay in registers; everything else is the same code, so
            that all give the same result up to rounding. ``"auto"`` is decided by
            :func:`choose_engine`.
        device: where to compute, for rows that are elsewhere. None: where the rows are.
        seed: of the draws. None takes one from torch's global generator, which is touched in no
            other case. Equal seeds give equal draws on every device.
        memory_budget: bytes for a block of distances. None: 4 MiB on the CPU, where a block then
            stays in the cache, and 256 MiB elsewhere.
        distributed: rows are sharded over the ranks. Equal seeds draw the rows they draw in one
            process.

    Attributes:
        centroids: ``(k, d)``, float64 for float64 rows and else float32.
        labels: ``(n,)`` int64, the nearest centroid of each row of the last ``fit``.
        inertia: the objective: weighted sum of squared distances, for cosine of 1 - cosine.
        n_iter: iterations of the restart that was kept.
        engine_used: ``"torch"``, ``"faiss"`` or ``"triton"``.

    A cluster that is left without weight restarts from the row with the largest weighted cost. So a
    cluster ends up empty only if there are fewer than ``n_clusters`` distinct rows (its centroid
    then stays where it is) or ``max_iter`` came first.

    Distributed: with ``distributed=True`` each rank passes its own rows (and weights, known labels)
    and gets the labels of these; centroids, ``inertia`` and ``n_iter`` are those of all rows, on
    every rank the same and up to rounding what one process finds. Sums and weights of the clusters
    are added over the ranks; the rows themselves stay, except for the seeds (and for the samples of
    ``"nested"``, which every rank holds and works through).

    Raises:
        ArgumentError: an argument out of its range, here or in :meth:`fit`; rows or weights that
            are not finite; more clusters than rows; chunks that can be read only once; ``init``, or
            rows for :meth:`predict`, more than 2^60 times as large as the rows of :meth:`fit`. A
            ``fit`` that fails leaves the attributes as they were.

    Source:
        Lloyd, 1982; Arthur and Vassilvitskii, k-means++, SODA 2007; Dhillon and Modha, Concept
        decompositions for large sparse text data using clustering, Machine Learning 2001; Sculley,
        Web-scale k-means clustering, WWW 2010 (:meth:`partial_fit`); Vaze et al., Generalized
        category discovery, CVPR 2022 (``known``).

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

        Tensors in, tensors out, on a device of choice; half precision is computed in float32:

        >>> KMeans(2, seed=0, device="cpu").fit(x.half()).centroids.dtype
        torch.float32

        Deterministic: equal seeds give equal bits.

        >>> torch.equal(KMeans(2, seed=3).fit(x).centroids, KMeans(2, seed=3).fit(x).centroids)
        True

        Weights, here as good as a row that comes three times:

        >>> KMeans(1).fit(x[1:3], weights=torch.tensor([3.0, 1.0])).centroids
        tensor([[2.2500, 1.5000]])

        Spherical:

        >>> KMeans(1, metric="cosine").fit(torch.tensor([[3.0, 0.0], [0.0, 8.0]])).centroids
        tensor([[0.7071, 0.7071]])

        Balanced, with at most two rows a cluster:

        >>> line = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
        >>> KMeans(2, init=line[[0, 3]], max_cluster_size=2).fit(line).labels
        tensor([0, 0, 1, 1])

        Constrained: row 3 belongs to class 0 and row 0 to class 1, whatever the distances say.

        >>> KMeans(2, seed=0).fit(line, known=torch.tensor([1, -1, -1, 0])).labels
        tensor([1, 1, 1, 0])

        Larger than memory, from a function that yields chunks (or a ``numpy.memmap``):

        >>> KMeans(2, init=x[:2]).fit(lambda: iter([x[:3], x[3:]])).centroids
        tensor([[4.5000, 0.0000],
                [4.5000, 2.0000]])

        Mini-batches:

        >>> kmeans = KMeans(2, init=x[[0, 2]])
        >>> for batch in x[[0, 2]], x[[1, 3]]:
        ...     _ = kmeans.partial_fit(batch)
        >>> kmeans.centroids
        tensor([[0., 1.],
                [9., 1.]])
    """

    centroids: Tensor
    labels: Tensor
    inertia: float
    n_iter: int
    engine_used: Engine

    def __init__(
        self,
        n_clusters: int,
        *,
        metric: Metric = "euclidean",
        init: Init | Tensor = "k-means++",
        n_init: int = 1,
        max_iter: int = 300,
        tol: float = 1e-4,
        max_cluster_size: int | None = None,
        engine: Literal["auto"] | Engine = "auto",
        device: torch.device | str | None = None,
        seed: int | None = None,
        memory_budget: int | None = None,
        distributed: bool = False,
    ):
        require(metric in ("euclidean", "cosine"), "metric", metric, "euclidean or cosine")
        require(engine in ("auto", *SEARCHES), "engine", engine, "auto, torch, faiss or triton")
        starts = ("k-means++", "random", "nested", "superkmeans")
        expected = f"{', '.join(starts)} or a (k, d) tensor of centroids"
        known_start = isinstance(init, str) and init in starts
        require(known_start or isinstance(init, Tensor), "init", init, expected)
        require(tol >= 0, "tol", tol, "at least 0")
        self.n_clusters = require_int("n_clusters", n_clusters, 1)
        self.metric = metric
        self.init = init
        self.n_init = require_int("n_init", n_init, 1)
        self.max_iter = require_int("max_iter", max_iter, 1)
        self.tol = tol
        if max_cluster_size is not None:
            max_cluster_size = require_int("max_cluster_size", max_cluster_size, 1)
            if distributed:
                raise ArgumentError("max_cluster_size must be None with distributed=True")
        self.max_cluster_size = max_cluster_size
        self.engine = engine
        self.device = device
        self.seed = seed
        if memory_budget is not None:
            memory_budget = require_int("memory_budget", memory_budget, 1)
        self.memory_budget = memory_budget
        self.distributed = distributed

    @torch.no_grad()
    def fit(self, x: Readable, weights: Tensor | None = None, known: Tensor | None = None) -> Self:
        """Finds the centroids of ``(n, d)`` rows with ``(n,)`` non-negative weights (default 1).

        ``known`` are ``(n,)`` integer labels, -1 where there is none. Rows keep their known label
        throughout, and classes with such rows start from their mean; the other centroids start from
        unlabelled rows, drawn by k-means++ given those means.
        """
        ranks = Ranks(self.distributed)
        source, weights, known = self._checked(x, weights, known, ranks)
        with torch.autocast(source.device.type, enabled=False):
            frame = self._frame_of(source, ranks)
            rows = Rows(source, frame, weights, known, ranks)
            restarts = [self._best(rows, start) for start in self._starts(rows)]
            _, centroids, n_iter = min(restarts, key=itemgetter(0))
            outward = frame.outwards(centroids)
            labels, objective = self._final(rows, frame.inwards("centroids", outward))

            self._frame, self.centroids, self.labels, self.n_iter = frame, outward, labels, n_iter
            self.engine_used = self._engine(next(x for _, x in rows.blocks()))
            self.inertia = frame.outward_cost(objective * rows.heaviest)
            self._mass = _mass(rows, labels, self.n_clusters) * rows.heaviest
        return self

    @torch.no_grad()
    def partial_fit(self, x: Tensor, weights: Tensor | None = None) -> Self:
        """One step of mini-batch k-means on ``(n, d)`` rows: nearest centroids, then running means.

        Each centroid becomes the mean of itself, weighing as much as all rows that it was ever
        nearest to, and of the batch's rows that it is nearest to (for cosine the direction of that
        mean). What came before are earlier batches and, if there was one, the last ``fit``. The
        first call without a ``fit`` seeds the centroids by ``init`` from its own rows, at least
        ``n_clusters``. A cluster that has never had weight restarts from a costly row. ``labels``
        and ``inertia`` are those of the batch before the step, ``n_iter`` counts the steps.

        Raises:
            ArgumentError: as :meth:`fit`; with ``max_cluster_size``, which has no such form.
        """
        if self.max_cluster_size is not None:
            raise ArgumentError("max_cluster_size must be None for partial_fit")
        ranks = Ranks(self.distributed)
        started = hasattr(self, "centroids")
        source, weights, _ = self._checked(x, weights, None, ranks, enough=not started)
        with torch.autocast(source.device.type, enabled=False):
            frame = self._frame if started else self._frame_of(source, ranks)
            if started and source.width != self.centroids.shape[1]:
                require_rows("x", next(c for _, c in source), width=self.centroids.shape[1])
            rows = Rows(source, frame, weights, None, ranks, center=not started)
            if started:
                centroids = frame.inwards("centroids", self.centroids.to(source.device))[None]
                mass = self._mass.to(source.device)
            else:
                centroids = next(iter(self._starts(rows)))[:1]
                mass = torch.zeros(self.n_clusters, dtype=_wide(source.device)).to(source.device)
            mass = mass / rows.heaviest
            labels, cost, sums, seen = self._pass(rows, centroids)
            sums = sums + centroids * mass[:, None].to(sums)
            moved = _means(sums, seen + mass, centroids, spherical=frame.spherical)
            moved = _reseed(rows, moved, seen + mass == 0, cost * rows.weights)
            outward = frame.outwards(moved[0])

            self._frame, self.centroids, self.labels = frame, outward, labels[0]
            self._mass = (seen[0] + mass) * rows.heaviest
            self.n_iter = self.n_iter + 1 if started else 1
            self.engine_used = self._engine(next(x for _, x in rows.blocks()))
            objective = float(ranks.reduce(cost[0] @ rows.weights))
            self.inertia = frame.outward_cost(objective * rows.heaviest)
        return self

    @torch.no_grad()
    def predict(self, x: Readable) -> Tensor:
        """Nearest centroid ``(n,)`` of each of ``(n, d)`` rows."""
        if not hasattr(self, "centroids"):
            raise ArgumentError("predict needs centroids: call fit first")
        source = Source(x, self.device)
        with torch.autocast(source.device.type, enabled=False):
            frame, centroids = self._frame, self.centroids.to(source.device)
            centroids = frame.inwards("centroids", centroids)[None]
            labels = []
            for _, chunk in source:
                require_rows("x", chunk, width=centroids.shape[2])
                rows = frame.inwards("x", chunk)
                found, _ = self._search(rows, None, centroids)
                labels.append(found[0] * rows.any(dim=1) if frame.spherical else found[0])
        return torch.cat(labels)

    def fit_predict(
        self, x: Readable, weights: Tensor | None = None, known: Tensor | None = None
    ) -> Tensor:
        """:meth:`fit`, then ``labels``."""
        return self.fit(x, weights, known).labels

    def _best(self, rows: Rows, start: Tensor) -> tuple[float, Tensor, int]:
        """Objective, centroids ``(k, d)`` and iterations of the best of restarts ``(r, k, d)``."""
        centroids, n_iter = self._lloyd(rows, start, self.max_iter)
        if self.n_init == 1:
            return 0.0, centroids[0], int(n_iter[0])  # the best of one
        cost = self._pass(rows, centroids, update=False)[1]
        objectives = rows.ranks.reduce(cost @ rows.weights)  # (r,)
        best = int(objectives.argmin())
        return float(objectives[best]), centroids[best], int(n_iter[best])

    def _starts(self, rows: Rows) -> Iterator[Tensor]:
        """The restarts' centroids ``(r, k, d)``, as many at once as the memory budget holds."""
        n, k = rows.total, self.n_clusters
        if isinstance(self.init, Tensor):
            require_rows("init", self.init, width=rows.source.width, length=k)
            init = rows.frame.inwards("init", self.init.to(rows.norms.device))
            if rows.frame.spherical and not init.any(dim=1).all():
                raise ArgumentError("init must have no zero row for cosine")
            yield init[None]
            return
        given, open_ = _class_means(rows, k)  # (k, d), (k,)
        if not open_.any():
            yield given[None]
            return
        weights = rows.weights if rows.known is None else rows.weights * (rows.known < 0)
        generator = torch.Generator().manual_seed(self._drawn_seed(rows))
        at_once = max(1, self._budget(rows.norms) // (given.element_size() * max(12 * n, 256 * k)))
        missing = int(open_.sum())
        if self.init == "k-means++":
            draws = _draws(generator, self.n_init, missing).to(weights.device)
        for done in range(0, self.n_init, at_once):
            size = min(at_once, self.n_init - done)
            if self.init == "k-means++":
                seeds = plus_plus(rows, weights, draws[done : done + size], given[~open_])
            elif self.init == "random":
                drawn = [random_rows(rows, weights, missing, generator) for _ in range(size)]
                seeds = torch.stack(drawn)
            elif self.init == "nested":
                seeds = torch.stack([self._nested(rows, generator) for _ in range(size)])
            else:
                seeds = torch.stack([self._superkmeans(rows, generator) for _ in range(size)])
            start = given.repeat(size, 1, 1)
            start[:, open_] = seeds
            yield start

    def _nested(self, rows: Rows, generator: Generator) -> Tensor:
        """Centroids ``(k, d)`` of samples of more and more rows."""
        k = self.n_clusters
        sizes = [k * each for each in NESTED if k * each <= rows.total / 2]
        draws = _draws(generator, 1, k).to(rows.norms.device)
        if not sizes:
            return plus_plus(rows, rows.weights, draws, rows.norms.new_empty(0, rows.source.width))[
                0
            ]
        drawn = random_rows(rows, rows.weights, sizes[-1], generator)
        sample = rows.of(drawn[: sizes[0]])
        centroids = plus_plus(sample, sample.weights, draws, drawn[:0])
        for size in sizes:
            sample = rows.of(drawn[:size])
            centroids, _ = self._lloyd(sample, centroids, min(self.max_iter, 10))
        return rows.ranks.same(centroids[0])

    def _superkmeans(self, rows: Rows, generator: Generator) -> Tensor:
        seed = int(torch.randint(2**31, (), generator=generator))
        spherical = rows.frame.spherical
        assert rows.x is not None, "checked by fit"
        return superkmeans_centroids(rows.x, self.n_clusters, seed, spherical=spherical)

    def _lloyd(self, rows: Rows, start: Tensor, max_iter: int) -> tuple[Tensor, Tensor]:
        """Iterates restarts ``(r, k, d)`` until each has come to rest; also gives their counts."""
        limit = self.tol * rows.variance()
        centroids = start.clone()
        n_iter = torch.zeros(len(start), dtype=torch.int64)
        active = torch.arange(len(start), device=start.device)
        for _ in range(max_iter):
            before = centroids[active]
            after = self._step(rows, before)
            centroids[active] = after
            n_iter[active.cpu()] += 1
            movement = (after - before).square().sum(dim=(1, 2))
            active = active[movement > limit]
            if not len(active):
                break
        return centroids, n_iter

    def _step(self, rows: Rows, centroids: Tensor) -> Tensor:
        """One iteration: rows to their nearest centroid, centroids ``(r, k, d)`` to their mean."""
        _, cost, sums, mass = self._pass(rows, centroids)
        moved = _means(sums, mass, centroids, spherical=rows.frame.spherical)
        return _reseed(rows, moved, mass == 0, cost * rows.weights)

    def _pass(
        self, rows: Rows, centroids: Tensor, *, update: bool = True
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Labels and costs ``(r, n)`` of the own rows, sums ``(r, k, d)`` and weights ``(r, k)`` of
        the clusters over all ranks; without ``update`` these two stay zero.
        """
        k, wide = centroids.shape[1], _wide(centroids.device)
        labels, costs = [], []
        sums = torch.zeros_like(centroids, dtype=wide)
        mass = sums[..., 0].clone()
        for part, x in rows.blocks():
            found, cost = self._assign(rows, part, x, centroids)
            labels.append(found)
            costs.append(cost)
            if update:
                more, heavier = _cluster_sums(x, rows.weights[part], found, k)
                sums, mass = sums + more, mass + heavier
        if update:
            sums, mass = rows.ranks.reduce(sums), rows.ranks.reduce(mass)
        return torch.cat(labels, dim=1), torch.cat(costs, dim=1), sums, mass

    def _assign(
        self, rows: Rows, part: slice, x: Tensor, centroids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Labels and squared distances ``(r, n)`` of a block: of the nearest centroid, unless its
        size is limited or the label known.
        """
        if self.max_cluster_size is not None:
            each = [balanced_labels(x, c, self.max_cluster_size) for c in centroids]
            labels = torch.stack(each)
            return labels, torch.stack(
                [self._costs(x, c, own) for c, own in zip(centroids, labels, strict=True)]
            )
        labels, cost = self._search(x, rows.norms[part], centroids)
        if rows.known is None:
            return labels, cost
        known = rows.known[part]
        pinned = known >= 0
        labels[:, pinned] = known[pinned]
        cost[:, pinned] = torch.stack([self._costs(x[pinned], c, known[pinned]) for c in centroids])
        return labels, cost

    def _final(self, rows: Rows, centroids: Tensor) -> tuple[Tensor, float]:
        """Labels ``(n,)`` of the own rows, and the objective from the differences themselves.

        A row without a direction gets label 0, unless its label is known or sizes are limited.
        """
        labels, objective = [], torch.zeros(())
        for part, x in rows.blocks():
            own = self._assign(rows, part, x, centroids[None])[0][0]
            if rows.frame.spherical and self.max_cluster_size is None:
                free = rows.norms[part] > 0
                own = own * (free if rows.known is None else free | (rows.known[part] >= 0))
            labels.append(own)
            cost = self._costs(x, centroids, own)
            objective = objective.to(cost) + rows.weights[part] @ cost
        return torch.cat(labels), float(rows.ranks.reduce(objective))

    def _costs(self, x: Tensor, centroids: Tensor, labels: Tensor) -> Tensor:
        """Squared distances ``(n,)`` of rows from the centroids ``(k, d)`` of their labels."""
        block = max(1, self._budget(x) // (x.element_size() * x.shape[1]))
        pairs = zip(x.split(block), labels.split(block), strict=True)
        return torch.cat([(rows - centroids[own]).square().sum(dim=1) for rows, own in pairs])

    def _search(self, x: Tensor, norms: Tensor | None, centroids: Tensor) -> tuple[Tensor, Tensor]:
        norms = torch.zeros((), dtype=x.dtype, device=x.device) if norms is None else norms
        return SEARCHES[self._engine(x)](x, norms, centroids, self._budget(x))

    def _engine(self, x: Tensor) -> Engine:
        return choose_engine(x, self.n_clusters) if self.engine == "auto" else self.engine

    def _budget(self, x: Tensor) -> int:
        return self.memory_budget or (4 if x.device.type == "cpu" else 256) * 2**20

    def _frame_of(self, source: Source, ranks: Ranks) -> Frame:
        largest = torch.tensor(source.largest, dtype=source.dtype, device=source.device)
        return Frame(
            dtype=source.dtype,
            device=source.device,
            spherical=self.metric == "cosine",
            largest=float(ranks.reduce(largest, "max")),
            width=source.width,
        )

    def _drawn_seed(self, rows: Rows) -> int:
        seed = self.seed if self.seed is not None else int(torch.randint(2**63 - 1, ()))
        return int(rows.ranks.same(torch.tensor(seed, device=rows.norms.device)))

    def _checked(
        self,
        x: Readable,
        weights: Tensor | None,
        known: Tensor | None,
        ranks: Ranks,
        *,
        enough: bool = True,
    ) -> tuple[Source, Tensor, Tensor | None]:
        """The rows, their weights in the precision of the arithmetic, and known labels."""
        problem, device = None, x.device if isinstance(x, Tensor) else torch.device("cpu")
        try:
            source = Source(x, self.device)
            self._require_options(source, weights, known)
            weights = _checked_weights(weights, source)
            if known is not None:
                known = _checked_known(known, source.n, self.n_clusters).to(source.device)
        except ArgumentError as error:
            problem = error
        ranks.agree(problem, torch.device(self.device or device))
        total = sum(ranks.sizes(source.n, source.device))
        if enough and self.n_clusters > total:
            raise ArgumentError(
                f"n_clusters must be at most the number of rows, "
                f"got n_clusters={self.n_clusters} for n={total}"
            )
        assert weights is not None
        return source, weights, known

    def _require_options(
        self, source: Source, weights: Tensor | None, known: Tensor | None
    ) -> None:
        """Raises ArgumentError for what cannot be had together."""
        if known is not None and self.init in ("nested", "superkmeans"):
            raise ArgumentError(f"known must be None with init={self.init!r}")
        alone = source.resident is not None and weights is None and not self.distributed
        if self.init == "superkmeans" and not alone:
            raise ArgumentError(
                "init 'superkmeans' takes rows in memory, without weights, of one process"
            )
        if self.max_cluster_size is None:
            return
        if weights is not None or known is not None or source.resident is None:
            raise ArgumentError(
                "max_cluster_size must be None with weights, known or rows in chunks"
            )
        if self.n_clusters * self.max_cluster_size < source.n:
            raise ArgumentError(
                f"max_cluster_size must be at least n / k, rounded up: "
                f"{-(-source.n // self.n_clusters)} for n={source.n} and k={self.n_clusters}, "
                f"got {self.max_cluster_size}"
            )


def _draws(generator: Generator, restarts: int, n_clusters: int) -> Tensor:
    """31-bit random integers ``(r, k, trials)`` for k-means++."""
    trials = 2 + int(math.log(n_clusters))
    return torch.randint(2**31, (restarts, n_clusters, trials), generator=generator)


def _class_means(rows: Rows, n_clusters: int) -> tuple[Tensor, Tensor]:
    """Means ``(k, d)`` of the rows of known label, and which classes ``(k,)`` have none."""
    width, device = rows.source.width, rows.norms.device
    zero = rows.norms.new_zeros(n_clusters, width)
    if rows.known is None:
        return zero, torch.ones(n_clusters, dtype=torch.bool, device=device)
    sums = zero.to(_wide(device))
    mass = sums[:, 0].clone()
    for part, x in rows.blocks():
        labels, weights = rows.known[part], rows.weights[part] * (rows.known[part] >= 0)
        more, heavier = _cluster_sums(x, weights, labels.clamp_min(0)[None], n_clusters)
        sums, mass = sums + more[0], mass + heavier[0]
    sums, mass = rows.ranks.reduce(sums), rows.ranks.reduce(mass)
    missing = mass == 0
    unlabelled = int(rows.ranks.reduce((rows.known < 0).sum()))
    if missing.sum() > unlabelled:
        raise ArgumentError(
            f"known must leave a row without label for each of the {int(missing.sum())} classes "
            f"without a labelled one, got {unlabelled}"
        )
    return _means(sums[None], mass[None], zero[None], spherical=rows.frame.spherical)[0], missing


def _means(sums: Tensor, mass: Tensor, centroids: Tensor, *, spherical: bool) -> Tensor:
    """Means ``(r, k, d)``, on the sphere their directions; a centroid without one stays."""
    tiny = torch.finfo(centroids.dtype).tiny
    size = sums.norm(dim=-1) if spherical else mass
    means = (sums / size.clamp_min(tiny)[..., None]).to(centroids)
    return torch.where((size > tiny)[..., None], means, centroids)


def _cluster_sums(
    x: Tensor, weights: Tensor, labels: Tensor, n_clusters: int
) -> tuple[Tensor, Tensor]:
    """Weighted sum ``(r, k, d)`` and weight ``(r, k)`` of the clusters of ``(r, n)`` labels.

    Rows are added up in sorted order, without atomics: the same bits in every run. Up to 64 are
    added in the precision of ``x`` and these sums in float64, so that the millionth row still
    counts in full. (MPS has no float64; there the 64 alone have to do.)
    """
    restarts, n = labels.shape
    wide = _wide(x.device)
    clusters = torch.arange(restarts * n_clusters, device=x.device)
    owners = (labels + clusters[::n_clusters, None]).flatten()
    ordered, order = owners.sort(stable=True)
    rows = order % n
    begins = torch.searchsorted(ordered, clusters)
    steps = torch.arange(0, len(rows), 64, device=x.device)
    chunks = torch.cat([begins, steps]).sort().values

    def add(table: Tensor, per_row: Tensor | None = None) -> Tensor:
        parts = embedding_bag(rows, table, chunks, mode="sum", per_sample_weights=per_row)
        each = torch.arange(len(parts), device=x.device)
        total = embedding_bag(each, parts.to(wide), torch.searchsorted(chunks, begins), mode="sum")
        return total.view(restarts, n_clusters, -1)

    sums = add(x, weights[rows])
    if x.device.type != "cpu":
        return sums, add(weights.to(wide)[:, None])[..., 0]
    each = weights.to(wide).expand(restarts, n).flatten()
    return sums, torch.bincount(owners, each, len(clusters)).view(restarts, n_clusters)


def _reseed(rows: Rows, centroids: Tensor, empty: Tensor, cost: Tensor) -> Tensor:
    """Puts the j-th empty cluster of a restart on the row with the j-th largest cost above 0."""
    if not empty.any():
        return centroids
    if rows.known is not None:
        cost = cost * (rows.known < 0)
    wanted = int(empty.sum(dim=1).max())
    largest, index = cost.topk(min(wanted, cost.shape[1]))  # (r, m)
    largest = rows.ranks.gather(largest.T).T  # (r, ranks m)
    index = rows.ranks.gather(index.T + rows.first).T
    largest, order = largest.topk(min(wanted, largest.shape[1]))
    rank = (empty.long().cumsum(dim=1) - 1).clamp(0, largest.shape[1] - 1)  # (r, k)
    place = empty & (largest.gather(1, rank) > 0)
    costliest = rows.fetch(index.gather(1, order).gather(1, rank))  # (r, k, d)
    return torch.where(place[..., None], costliest, centroids)


def _mass(rows: Rows, labels: Tensor, n_clusters: int) -> Tensor:
    """Weight ``(k,)`` of the clusters over all ranks."""
    wide = _wide(labels.device)
    mass = torch.zeros(n_clusters, dtype=wide, device=labels.device)
    return rows.ranks.reduce(mass.index_add_(0, labels, rows.weights.to(wide)))


def _wide(device: torch.device) -> torch.dtype:
    """What sums over many rows are kept in."""
    return torch.float32 if device.type == "mps" else torch.float64


def _checked_weights(weights: Tensor | None, source: Source) -> Tensor:
    """``(n,)`` weights in the precision of the arithmetic."""
    if weights is None:
        return torch.ones(source.n, dtype=source.dtype, device=source.device)
    weights = torch.as_tensor(weights)
    if weights.shape != (source.n,):
        raise ArgumentError(
            f"weights must have shape ({source.n},), one for each row of x, "
            f"got {tuple(weights.shape)}"
        )
    weights = weights.to(source.device, source.dtype)
    if not weights.isfinite().all() or weights.min() < 0 or not weights.any():
        raise ArgumentError("weights must be finite, none negative and not all zero")
    return weights


def _checked_known(known: Tensor, n: int, n_clusters: int) -> Tensor:
    """``(n,)`` int64 labels from -1 to k - 1."""
    known = torch.as_tensor(known)
    if known.shape != (n,) or known.is_floating_point() or known.dtype == torch.bool:
        raise ArgumentError(
            f"known must be ({n},) integers, one for each row of x, "
            f"got {tuple(known.shape)} of {known.dtype}"
        )
    if known.min() < -1 or known.max() >= n_clusters:
        raise ArgumentError(
            f"known must be labels from 0 to {n_clusters - 1}, or -1 for none, "
            f"got {int(known.min())} to {int(known.max())}"
        )
    return known.long()
