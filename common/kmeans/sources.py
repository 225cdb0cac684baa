"""Where the rows of k-means come from: a tensor, or chunks that are read again in every pass; and
which share of them this process holds.
"""

from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.distributed import all_reduce, broadcast, gather_rows, rank, shard_sizes
from common.errors import ArgumentError
from common.kmeans.frame import Frame, largest_value, precision, squared_norms
from common.kmeans.rows import require_rows

Chunk = Tensor | np.ndarray
Readable = Chunk | Callable[[], Iterable[Chunk]] | Iterable[Chunk]

CHUNK_BYTES = 64 * 2**20  # of a memory-mapped array


@dataclass(frozen=True)
class Ranks:
    """The ranks that share the rows; without ``distributed`` this process alone."""

    distributed: bool

    def reduce(self, x: Tensor, op: str = "sum") -> Tensor:
        return all_reduce(x, op) if self.distributed else x

    def gather(self, x: Tensor) -> Tensor:
        return gather_rows(x)[0] if self.distributed else x

    def same(self, x: Tensor) -> Tensor:
        return broadcast(x) if self.distributed else x

    def sizes(self, n: int, device: torch.device) -> list[int]:
        return shard_sizes(n, device) if self.distributed else [n]

    @property
    def own(self) -> int:
        return rank() if self.distributed else 0

    def agree(self, problem: ArgumentError | None, device: torch.device) -> None:
        """Raises on every rank if one has a problem, so that none waits for another forever."""
        anywhere = self.reduce(torch.tensor(float(problem is not None), device=device), "max")
        if problem:
            raise problem
        if anywhere:
            raise ArgumentError("x, weights or known of another rank were refused")


class Source:
    """Rows as they were given: each pass is an iteration over ``(slice, chunk)``.

    The first pass, on construction, checks every chunk.

    Attributes:
        resident: the rows, if they are in memory as one tensor, and else None.
        n: number of rows.
        width: *d*.
        dtype: what is computed with.
        largest: the largest absolute value.
    """

    def __init__(self, x: Readable, device: torch.device | str | None):
        if isinstance(x, np.ndarray) and not isinstance(x, np.memmap):
            x = _tensor(x)
        self.resident = x.to(device) if isinstance(x, Tensor) else None
        self.device = torch.device(device or "cpu")
        self._open = _opener(x)
        self._array = x if isinstance(x, np.memmap) else None
        if self.resident is not None:
            require_rows("x", self.resident)
            self.device = self.resident.device
            self.n, self.width = self.resident.shape
            self.dtype = precision(self.resident.dtype)
            self.largest = largest_value(self.resident)
            return
        self.n = self.width = 0
        self.dtype, self.largest = torch.float32, 0.0
        for chunk in self._chunks():
            require_rows("x", chunk, width=self.width or None)
            self.n, self.width = self.n + len(chunk), chunk.shape[1]
            self.dtype = torch.promote_types(self.dtype, precision(chunk.dtype))
            self.largest = max(self.largest, largest_value(chunk))
        if not self.n:
            raise ArgumentError("x must have rows, got no chunk")

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        if self.resident is not None:
            yield slice(0, self.n), self.resident
            return
        end = 0
        for chunk in self._chunks():
            begin, end = end, end + len(chunk)
            yield slice(begin, end), chunk
        if end != self.n:
            raise ArgumentError(
                f"x must give the same rows in each pass, got {self.n} rows in the first "
                f"and {end} in a later one"
            )

    def take(self, index: Tensor) -> Tensor:
        """Rows ``(m, d)`` of an index ``(m,)``."""
        if self.resident is not None:
            return self.resident[index]
        if self._array is not None:
            return _tensor(self._array[index.cpu().numpy()]).to(self.device)
        taken = torch.zeros(len(index), self.width, dtype=self.dtype, device=self.device)
        for part, chunk in self:
            here = (index >= part.start) & (index < part.stop)
            taken[here] = chunk[index[here] - part.start].to(self.dtype)
        return taken

    def _chunks(self) -> Iterator[Tensor]:
        for chunk in self._open():
            if not isinstance(chunk, Tensor | np.ndarray):
                came = type(chunk).__name__
                raise ArgumentError(f"chunks of x must be tensors or arrays, got {came}")
            chunk = _tensor(chunk) if isinstance(chunk, np.ndarray) else chunk
            yield chunk.to(self.device)


class Rows:
    """The rows of this process in their :class:`Frame`, with weights and known labels.

    Args:
        center: makes the mean of the rows the origin of the frame.

    Attributes:
        weights: ``(n,)``, scaled so that the heaviest row weighs 1.
        heaviest: what it weighed.
        known: ``(n,)`` labels, -1 where there is none; or None.
        norms: ``(n,)`` squared norms.
        total: rows of all ranks, of which ``first`` is the index of this rank's first.
    """

    def __init__(
        self,
        source: Source,
        frame: Frame,
        weights: Tensor,
        known: Tensor | None,
        ranks: Ranks,
        *,
        center: bool = True,
    ):
        self.source, self.frame, self.ranks, self.known = source, frame, ranks, known
        resident = source.resident
        self.x = None if resident is None else frame.inwards("x", resident)
        if frame.spherical:
            weights = weights * self._per_row(lambda x: x.any(dim=1))
        self.heaviest = float(ranks.reduce(weights.max(), "max"))
        if not self.heaviest:
            raise ArgumentError("x must have a non-zero row of positive weight for cosine")
        self.weights = weights / self.heaviest
        self.mass = ranks.reduce(self.weights.sum())
        if center and not frame.spherical:
            frame.origin = self.mean()
            if self.x is not None:
                self.x.sub_(frame.origin)
        self.norms = self._per_row(squared_norms)
        sizes = ranks.sizes(len(weights), weights.device)
        self.first, self.total = sum(sizes[: ranks.own]), sum(sizes)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        if self.x is not None:
            yield slice(0, len(self.x)), self.x
            return
        for part, chunk in self.source:
            yield part, self.frame.inwards("x", chunk)

    def mean(self) -> Tensor:
        """Weighted mean ``(d,)`` over all ranks."""
        parts = [self.weights[part] @ x for part, x in self.blocks()]
        return self.ranks.reduce(torch.stack(parts).sum(dim=0)) / self.mass

    def variance(self) -> Tensor:
        """Of the mean feature, over all ranks."""
        square = self.ranks.reduce(self.weights @ self.norms) / self.mass
        return ((square - self.mean().square().sum()) / self.source.width).clamp_min(0)

    def of(self, x: Tensor) -> "Rows":
        """Other rows ``(m, d)`` of the same frame, which every rank holds alike, of weight 1."""
        rows = copy(self)
        rows.x, rows.norms, rows.weights = x, squared_norms(x), x.new_ones(len(x))
        rows.known, rows.ranks, rows.mass = None, Ranks(False), rows.weights.sum()
        rows.first, rows.total = 0, len(x)
        return rows

    def fetch(self, index: Tensor) -> Tensor:
        """The rows ``(..., d)`` of an index ``(...)`` into all ranks' rows, on every rank."""
        own = index.flatten() - self.first
        here = (own >= 0) & (own < len(self.weights))
        rows = self.norms.new_zeros(len(own), self.source.width)
        if here.any():
            rows[here] = self._take(own[here])
        return self.ranks.reduce(rows).view(*index.shape, -1)

    def _take(self, index: Tensor) -> Tensor:
        if self.x is not None:
            return self.x[index]
        return self.frame.inwards("x", self.source.take(index))

    def _per_row(self, number: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.cat([number(x) for _, x in self.blocks()])


def _tensor(x: np.ndarray) -> Tensor:
    """Of an array, without a copy where torch allows it."""
    if not x.flags.writeable or not x.dtype.isnative or isinstance(x, np.memmap):
        x = np.array(x, dtype=x.dtype.newbyteorder("="))
    try:
        return torch.from_numpy(x)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"x must be an array torch can read, got {x.dtype}") from error


def _opener(x: Readable) -> Callable[[], Iterable[Chunk]]:
    """Starts a pass over the chunks of ``x``."""
    if isinstance(x, Tensor):
        return lambda: [x]
    if isinstance(x, np.memmap):
        length = max(1, CHUNK_BYTES // max(1, x[:1].nbytes)) if x.ndim else 1
        return lambda: (x[begin : begin + length] for begin in range(0, len(x), length))
    if isinstance(x, Iterator):
        raise ArgumentError(
            f"x must be readable more than once, got {type(x).__name__}: pass a function that "
            f"returns a new iterator of chunks each time it is called"
        )
    if callable(x):
        return x
    if isinstance(x, Iterable):
        return lambda: x
    came = type(x).__name__
    raise ArgumentError(f"x must be a tensor, an array or a source of chunks, got {came}")
