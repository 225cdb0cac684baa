"""Projection and prediction heads."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

from torch import nn

from common.errors import require

Layer = Callable[[int], nn.Module]
RELU = partial(nn.ReLU, inplace=True)


def mlp(
    *dims: int,
    norm: Layer | None = None,
    final_norm: Layer | None = None,
    activation: Callable[[], nn.Module] = RELU,
    linear: Callable[..., nn.Module] = nn.Linear,
    bias: bool = True,
    final_bias: bool = True,
) -> nn.Sequential:
    """Linear layers through ``dims`` with a norm and an activation between them.

    =========================== ===================================================================
    MoCo-v2, graph encoders     ``mlp(2048, 2048, 128)``
    SimCLR, SwAV                ``mlp(2048, 2048, 128, norm=nn.BatchNorm1d)``
    BYOL projector, predictor   ``mlp(2048, 4096, 256, norm=nn.BatchNorm1d)``
    Barlow Twins                ``mlp(2048, 8192, 8192, 8192, norm=nn.BatchNorm1d, bias=False,
                                final_bias=False)``
    SimSiam, BECLR projector    ``mlp(512, 512, 512, 512, norm=nn.BatchNorm1d,
                                final_norm=nn.BatchNorm1d)``
    DINO, GCD                   ``mlp(768, 2048, 2048, 256, activation=nn.GELU)``
    PixPro, on maps             ``mlp(2048, 4096, 256, norm=nn.BatchNorm2d,
                                linear=partial(nn.Conv2d, kernel_size=1))``
    =========================== ===================================================================

    Without ``norm`` the first layer takes a dense or a sparse CSR matrix, so that bag-of-words
    attributes need not be made dense. Layers keep the initialisation of torch.

    Args:
        dims: widths, input and output included: two or more.
        norm: from a width to the layer before each activation.
        final_norm: from the last width to a layer at the end, such as
            ``partial(nn.BatchNorm1d, affine=False)``.
        activation: makes the activation.
        linear: makes a layer of ``(width_in, width_out, bias=...)``.
        bias: of every linear layer but the last.
        final_bias: of the last one.

    Distributed: nothing is communicated; ``norm=nn.SyncBatchNorm`` shares the batch statistics.

    Example:
        >>> mlp(4, 8, 2, norm=nn.LayerNorm, bias=False)  # doctest: +ELLIPSIS
        Sequential(
          (0): Linear(in_features=4, out_features=8, bias=False)
          (1): LayerNorm((8,), ...)
          (2): ReLU(inplace=True)
          (3): Linear(in_features=8, out_features=2, bias=True)
        )
    """
    require(len(dims) >= 2, "dims", dims, "two widths or more")
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(dims[:-1]):
        layers.append(linear(width_in, width_out, bias=bias))
        if norm is not None:
            layers.append(norm(width_out))
        layers.append(activation())
    layers.append(linear(dims[-2], dims[-1], bias=final_bias))
    if final_norm is not None:
        layers.append(final_norm(dims[-1]))
    return nn.Sequential(*layers)
