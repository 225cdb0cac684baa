"""The coordinates that k-means computes in: precision, scale and origin."""

import math

import torch
from torch import Tensor

from common.errors import ArgumentError


class Frame:
    """Precision, scale (a power of two) and origin ``(d,)`` that the arithmetic takes place in.

    For cosine the rows are put on the unit sphere instead.

    Args:
        largest: the largest absolute value among the rows.
        width: *d*.
    """

    def __init__(
        self,
        *,
        dtype: torch.dtype,
        device: torch.device,
        spherical: bool,
        largest: float,
        width: int,
    ):
        self.dtype = dtype
        self.spherical = spherical
        largest = max(largest, torch.finfo(dtype).tiny)
        self.scale = 2.0 ** (math.frexp(largest)[1] - 1)
        self.origin = torch.zeros(width, dtype=dtype, device=device)

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
                f"got values of up to {largest_value(x):.3g}"
            )
        return rows

    def outwards(self, centroids: Tensor) -> Tensor:
        return centroids if self.spherical else (centroids + self.origin) * self.scale

    def outward_cost(self, objective: float) -> float:
        return objective / 2 if self.spherical else objective * self.scale * self.scale


def precision(dtype: torch.dtype) -> torch.dtype:
    """What rows are computed with."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def largest_value(x: Tensor) -> float:
    """The largest absolute value; NaN if there is one."""
    return max(abs(float(extreme)) for extreme in x.aminmax())


def squared_norms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=1).square()


def _to_unit_(x: Tensor) -> None:
    """Brings rows to unit length in place; a zero row stays zero."""
    for order in (math.inf, 2):  # the first keeps the squares in range
        norms = torch.linalg.vector_norm(x, order, dim=-1, keepdim=True)
        x.div_(norms.clamp_min_(torch.finfo(x.dtype).tiny))
