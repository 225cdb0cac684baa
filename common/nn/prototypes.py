"""Trainable prototypes on the unit sphere."""

from typing import Literal

import torch
from torch import Tensor, nn

from common.errors import require, require_int
from common.losses._similarity import unit_rows


class Prototypes(nn.Module):
    r"""Scores of embeddings against trainable prototypes of unit length.

    .. math:: s_{ij} = z_i \cdot c_j, \qquad \lVert c_j \rVert = 1

    The rows of ``z`` are not normalised here; where they have unit length, scores are cosines.

    Args:
        d: width of the embeddings.
        k: number of prototypes.
        normalize: ``"step"``: the rows of ``weight`` are put on the sphere by :meth:`normalize_`,
            to be called before every forward pass of a training step, and the gradient is taken at
            the unit vectors as they are (SwAV). ``"forward"``: every forward pass normalises them,
            gradient included, and ``weight`` keeps a length of its own (a cosine classifier).
        frozen_until: with :meth:`drop_gradient`, the prototypes rest while the progress is below
            this, in whatever unit (steps, epochs) the progress is told.

    Attributes:
        weight: ``(k, d)`` parameter, drawn uniformly from the sphere. DeepCluster writes centroids
            into it.

    Distributed: nothing is communicated; DistributedDataParallel averages the gradient of
    ``weight`` like that of any parameter.

    Source:
        SwAV, Caron et al., NeurIPS 2020 (arXiv 2006.09882).

    Example:
        >>> prototypes = Prototypes(2, 3)
        >>> _ = prototypes.weight.data.copy_(torch.tensor([[2.0, 0.0], [0.0, 3.0], [3.0, 4.0]]))
        >>> prototypes.normalize_()
        >>> prototypes(torch.tensor([[1.0, 0.0]])).detach()
        tensor([[1.0000, 0.0000, 0.6000]])
    """

    def __init__(
        self,
        d: int,
        k: int,
        *,
        normalize: Literal["step", "forward"] = "step",
        frozen_until: float = 0,
    ):
        super().__init__()
        d, k = require_int("d", d, 1), require_int("k", k, 1)
        require(normalize in ("step", "forward"), "normalize", normalize, "step or forward")
        require(frozen_until >= 0, "frozen_until", frozen_until, "at least 0")
        self.normalize = normalize
        self.frozen_until = frozen_until
        self.weight = nn.Parameter(unit_rows(torch.randn(k, d)))

    def forward(self, z: Tensor) -> Tensor:
        """Scores ``(..., k)`` of ``(..., d)`` embeddings, in at least float32."""
        with torch.autocast(z.device.type, enabled=False):
            dtype = torch.promote_types(
                torch.promote_types(z.dtype, self.weight.dtype), torch.float
            )
            weight = self.weight.to(dtype)
            weight = unit_rows(weight) if self.normalize == "forward" else weight
            return z.to(dtype) @ weight.T

    @torch.no_grad()
    def normalize_(self) -> None:
        """Puts the prototypes on the sphere, in place."""
        self.weight.copy_(unit_rows(self.weight))

    def drop_gradient(self, progress: float) -> None:
        """Forgets the gradient while frozen; to be called between backward and optimiser step.

        A parameter without gradient is left alone by optimisers, weight decay included.
        """
        if progress < self.frozen_until:
            self.weight.grad = None

    def extra_repr(self) -> str:
        k, d = self.weight.shape
        return f"{d}, {k}, normalize={self.normalize!r}, frozen_until={self.frozen_until}"
