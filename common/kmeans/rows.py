"""What every form of k-means asks of its rows."""

import math

import torch
from torch import Tensor

from common.errors import ArgumentError


def require_rows(
    name: str,
    x: Tensor,
    *,
    width: int | None = None,
    length: int | None = None,
    letter: str = "n",
) -> None:
    """Raises ArgumentError unless ``x`` is ``(length, width)`` finite floating-point numbers.

    ``letter`` is what a length that is left open is called.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.layout != torch.strided:
        came = f"{x.dtype}, {x.layout}" if isinstance(x, Tensor) else type(x).__name__
        raise ArgumentError(f"{name} must be a dense floating-point tensor, got {came}")
    fits = x.ndim == 2 and width in (None, x.shape[1]) and length in (None, len(x))
    if not fits or not x.numel():
        expected = f"({length or letter}, {width or 'd'})"
        raise ArgumentError(f"{name} must have shape {expected}, got {tuple(x.shape)}")
    if not all(math.isfinite(float(extreme)) for extreme in x.detach().aminmax()):
        raise ArgumentError(f"{name} must be finite, got NaN or infinity")
