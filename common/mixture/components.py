"""The two steps of expectation maximisation, on rows brought into range."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from common.errors import ArgumentError

Covariance = Literal["full", "diag"]


class Frame:
    """Precision, scale (a power of two, of the size of the rows) and origin ``(d,)``."""

    def __init__(self, x: Tensor):
        self.dtype = torch.promote_types(x.dtype, torch.float32)
        largest = max(map(abs, torch.stack(x.aminmax()).tolist()))
        # No less than 2^-40, or the regularization in these units could overflow.
        self.scale = 2.0 ** max(-40, math.frexp(largest)[1] - 1)
        self.log_volume = x.shape[1] * math.log(self.scale)
        self.origin = (x.to(self.dtype) / self.scale).mean(dim=0)

    def inwards(self, x: Tensor) -> Tensor:
        """Refuses rows so far from those of fit that their density could overflow."""
        rows = (x.to(self.dtype) / self.scale).sub_(self.origin)
        if rows.abs().amax() > 2.0**30:
            raise ArgumentError(
                "x must be at most 2^30 times as large as the rows of fit, "
                f"got values of up to {float(x.abs().amax()):.3g}"
            )
        return rows

    def outwards(self, x: Tensor) -> Tensor:
        return (x + self.origin) * self.scale


class Components(NamedTuple):
    """Parameters, and Cholesky factors ``(k, d, d)`` or standard deviations ``(k, d)``."""

    weights: Tensor
    means: Tensor
    covariances: Tensor
    factors: Tensor


def log_joint(x: Tensor, components: Components, block: int) -> Tensor:
    """Log of weight times density, ``(n, k)``."""
    weights, means, _, factors = components
    full = factors.ndim == 3
    if full:
        identity = torch.eye(x.shape[1]).to(x)
        inverses = torch.linalg.solve_triangular(factors, identity, upper=False).mT
    deviations = factors.diagonal(dim1=1, dim2=2) if full else factors  # (k, d)
    squares = []
    for rows in x.split(block):
        difference = rows - means[:, None]  # (k, b, d)
        scaled = difference @ inverses if full else difference.div_(factors[:, None])
        squares.append(scaled.square_().sum(dim=2).T)  # (b, k)
    volumes = deviations.log().sum(dim=1) + x.shape[1] / 2 * math.log(2 * math.pi)  # (k,)
    return weights.log() - volumes - torch.cat(squares) / 2


def expect(
    x: Tensor, components: Components, known: Tensor | None, block: int
) -> tuple[float, Tensor]:
    """Mean log-likelihood, and responsibilities ``(n, k)``."""
    joint = log_joint(x, components, block)
    if known is not None:
        others = torch.arange(joint.shape[1], device=x.device) != known[:, None]
        joint.masked_fill_(others & (known >= 0)[:, None], -math.inf)
    density = joint.logsumexp(dim=1)
    return float(density.mean()), (joint - density[:, None]).exp()


def maximise(
    x: Tensor,
    responsibilities: Tensor,
    means: Tensor,
    covariance: Covariance,
    regularization: float,
    block: int,
) -> Components:
    """The components of the highest likelihood; those without rows keep their means."""
    epsilon, tiny = torch.finfo(x.dtype).eps, torch.finfo(x.dtype).tiny
    mass = responsibilities.sum(dim=0)  # (k,)
    divisor = mass.clamp_min(tiny)[:, None]
    means = torch.where(mass[:, None] > tiny, responsibilities.T @ x / divisor, means)
    full = covariance == "full"
    moments = x.new_zeros(())
    for rows, shares in zip(x.split(block), responsibilities.split(block), strict=True):
        difference = rows - means[:, None]  # (k, b, d)
        if full:
            weighted = difference.mul_(shares.T.sqrt()[..., None])
            moments = moments + weighted.mT @ weighted  # (k, d, d)
        else:
            moments = moments + (shares.T[:, None] @ difference.square_())[:, 0]  # (k, d)
    covariances = moments / (divisor[..., None] if full else divisor)
    variances = covariances.diagonal(dim1=1, dim2=2) if full else covariances
    variances += regularization + epsilon * variances.sum(dim=1, keepdim=True) + epsilon**2

    weights = mass / len(x)
    if not full:
        return Components(weights, means, covariances, covariances.sqrt())
    factors, failed = torch.linalg.cholesky_ex(covariances)
    if failed.any():
        raise ArgumentError("a covariance is singular to rounding: regularization must be larger")
    return Components(weights, means, covariances, factors)
