"""The exponential moving average of an encoder."""

import math
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from common.errors import ArgumentError, require


class MomentumEncoder(nn.Module):
    r"""A copy of an encoder that follows it slowly and never gets a gradient.

    .. math:: \theta' \leftarrow m \, \theta' + (1 - m) \, \theta

    :meth:`update` is called once a step, where the method has it: before the copy encodes (MoCo,
    PixPro) or after the optimiser step. The average is that of ``torch.optim.swa_utils``; its class
    ``AveragedModel`` is not used, because it fixes :math:`m` at the start, overwrites the batch
    statistics of the copy by those of the encoder, and leaves the copy trainable. Of parameters in
    half precision keep a float32 encoder: a thousandth of a step is below their rounding.

    Args:
        encoder: any module; several go into an ``nn.Sequential`` or ``nn.ModuleDict``.
        copy_buffers: False: buffers, such as the running statistics of batch norm, are the copy's
            own and follow its forward passes (MoCo, PixPro, SlotCon, BECLR). True: each update
            copies those of the encoder.

    Attributes:
        encoder: the copy. It is a submodule: saved, moved and put in train or eval mode with its
            parent.

    Distributed: nothing is communicated; equal encoders on all ranks have equal copies.

    Source:
        MoCo, He et al., CVPR 2020 (arXiv 1911.05722), equation 2.

    Example:
        >>> online = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(online.weight)
        >>> momentum_encoder = MomentumEncoder(online)
        >>> _ = nn.init.ones_(online.weight)
        >>> momentum_encoder.update(online, momentum=0.75)
        >>> momentum_encoder(torch.ones(1, 1))
        tensor([[0.2500]])
    """

    def __init__(self, encoder: nn.Module, *, copy_buffers: bool = False):
        super().__init__()
        self.encoder = deepcopy(encoder).requires_grad_(False)
        self.copy_buffers = copy_buffers

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the copy makes of the input; carries no gradient."""
        return self.encoder(*args, **kwargs)

    @torch.no_grad()
    def update(self, encoder: nn.Module, momentum: float) -> None:
        """Moves the copy towards ``encoder``, which has the same parameters, by 1 - momentum."""
        require(0 <= momentum <= 1, "momentum", momentum, "from 0 to 1")
        own, online = list(self.encoder.parameters()), list(encoder.parameters())
        if [p.shape for p in own] != [p.shape for p in online]:
            raise ArgumentError("encoder must have the parameters of the one that was copied")
        if own:
            get_ema_multi_avg_fn(momentum)(own, online, None)
        if self.copy_buffers:
            for copy, buffer in zip(self.encoder.buffers(), encoder.buffers(), strict=True):
                copy.copy_(buffer)


def cosine_momentum(progress: float, start: float = 0.99, end: float = 1.0) -> float:
    r"""Momentum that rises from ``start`` to ``end`` along half a cosine.

    .. math:: m = m_1 - (m_1 - m_0) \frac{1 + \cos(\pi p)}{2}

    Args:
        progress: *p*, from 0 at the first step to 1 at the end of training.
        start: :math:`m_0`.
        end: :math:`m_1`.

    Source:
        BYOL, Grill et al., NeurIPS 2020 (arXiv 2006.07733), section 3.2.

    Example:
        >>> [round(cosine_momentum(step / 4), 4) for step in range(5)]
        [0.99, 0.9915, 0.995, 0.9985, 1.0]
    """
    require(0 <= progress <= 1, "progress", progress, "from 0 to 1")
    return end - (end - start) * (1 + math.cos(math.pi * progress)) / 2
