"""Optimisers that are the default of a method, and those of large batches."""

from collections.abc import Callable, Iterable
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from common.errors import require

NORMALISATIONS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def adam(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Adam with learning rate 1e-3 and no weight decay."""
    return torch.optim.Adam(parameters, lr=1e-3, fused=True)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters in two groups: weights, which decay, and the rest, which do not.

    The rest are biases, whatever belongs to a normalisation, and all other vectors and scalars.

    Args:
        module: whose parameters.
        weight_decay: of the first group.

    Returns:
        Groups for any optimiser, each with ``params`` and ``weight_decay``; an empty one is left
        out.

    Example:
        >>> module = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
        >>> groups = parameter_groups(module, 0.1)
        >>> [(group["weight_decay"], len(group["params"])) for group in groups]
        [(0.1, 1), (0.0, 3)]
    """
    require(0 <= weight_decay < inf, "weight_decay", weight_decay, "at least 0, finite")
    of_normalisations = {
        id(parameter)
        for child in module.modules()
        if isinstance(child, NORMALISATIONS)
        for parameter in child.parameters(recurse=False)
    }
    weights: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            exempt = (
                parameter.ndim < 2 or name.endswith("bias") or id(parameter) in of_normalisations
            )
            (rest if exempt else weights).append(parameter)
    groups = [
        {"params": weights, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class LARS(Optimizer):
    r"""SGD with momentum whose rate follows, tensor by tensor, the norm of weight over gradient.

    .. math::
        u = \eta \frac{\lVert w \rVert}{\lVert g \rVert + \lambda \lVert w \rVert} (g + \lambda w),
        \qquad v \leftarrow \mu v + u, \qquad w \leftarrow w - \gamma v

    with the trust coefficient :math:`\eta`, weight decay :math:`\lambda`, momentum :math:`\mu` and
    learning rate :math:`\gamma`. timm's ``Lars`` has this form only; ours has all that the methods
    were published with:

    - SwAV, DeepCluster-v2: ``exclude_vectors=False``, so that biases are scaled and decay too.
    - AdaInf (LARC): ``clip=True``, the ratio over :math:`\gamma` is at most 1.
    - PixPro, SlotCon, BYOL: ``decay_first=True``, the denominator is
      :math:`\lVert g + \lambda w \rVert`.

    Args:
        params: parameters, or groups of them with settings of their own.
        lr: :math:`\gamma`.
        momentum: :math:`\mu`; the first step has :math:`v = u`.
        weight_decay: :math:`\lambda`.
        trust_coefficient: :math:`\eta`.
        exclude_vectors: biases, normalisation and all else of at most one dimension is neither
            scaled nor decays: :math:`u = g`.
        clip: bounds the rate of every tensor by :math:`\gamma`.
        decay_first: adds the decay to the gradient before its norm is taken.
        epsilon: added to the denominator.

    A tensor of norm 0, or whose gradient is 0, is not scaled, and unless ``decay_first`` does not
    decay either.

    Raises:
        ArgumentError: a setting that is negative or not finite.

    Source:
        You et al., Large Batch Training of Convolutional Networks, arXiv 1708.03888.

    Example:
        >>> weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
        >>> optimizer = LARS([weight], lr=1.0, trust_coefficient=0.1)
        >>> weight.grad = torch.tensor([[0.0, 1.0]])
        >>> optimizer.step()
        >>> weight.data  # the step is a tenth of the norm 5 long
        tensor([[3.0000, 3.5000]])
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        exclude_vectors: bool = True,
        clip: bool = False,
        decay_first: bool = False,
        epsilon: float = 1e-8,
    ):
        settings = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "epsilon": epsilon,
        }
        for name, value in settings.items():
            require(0 <= value < inf, name, value, "at least 0, finite")
        flags = {"exclude_vectors": exclude_vectors, "clip": clip, "decay_first": decay_first}
        super().__init__(params, {**settings, **flags})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                if weight.ndim > 1 or not group["exclude_vectors"]:
                    update = _scaled(weight, group)
                else:
                    update = weight.grad
                state = self.state[weight]
                if "momentum_buffer" in state:
                    state["momentum_buffer"].mul_(group["momentum"]).add_(update)
                else:
                    state["momentum_buffer"] = update.clone()
                weight.add_(state["momentum_buffer"], alpha=-group["lr"])
        return loss


def _scaled(weight: Tensor, group: dict[str, Any]) -> Tensor:
    grad, decay = weight.grad, group["weight_decay"]
    assert grad is not None
    decayed = grad.add(weight, alpha=decay)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    weight_norm = torch.linalg.vector_norm(weight, dtype=dtype)
    grad_norm = torch.linalg.vector_norm(decayed if group["decay_first"] else grad, dtype=dtype)
    denominator = grad_norm + group["epsilon"]
    if not group["decay_first"]:
        denominator = denominator + decay * weight_norm
    ratio = group["trust_coefficient"] * weight_norm / denominator
    if group["clip"]:
        ratio = (ratio / group["lr"]).clamp(max=1) if group["lr"] else torch.ones_like(ratio)
    # Chosen on the device: a branch on the norms would wait for it, once a tensor.
    usable = (weight_norm > 0) & (grad_norm > 0)
    scaled = (decayed * ratio).to(grad.dtype)
    return torch.where(usable, scaled, decayed if group["decay_first"] else grad)
