"""Bricks of contrastive methods that have state: heads, prototypes, momentum copies, memories."""

from common.nn.bank import MemoryBank
from common.nn.heads import mlp
from common.nn.momentum import MomentumEncoder, cosine_momentum
from common.nn.prototypes import Prototypes
from common.nn.queue import FeatureQueue

__all__ = [
    "FeatureQueue",
    "MemoryBank",
    "MomentumEncoder",
    "Prototypes",
    "cosine_momentum",
    "mlp",
]
