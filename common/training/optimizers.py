"""Optimisers that are the default of a method."""

from collections.abc import Iterable

import torch
from torch import nn


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Adam with learning rate 1e-3 and no weight decay."""
    return torch.optim.Adam(parameters, lr=1e-3, fused=True)
