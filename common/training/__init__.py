"""What every method trains with: the base LightningModule, optimisers, schedules, callbacks."""

from common.training.checkpoint import load_checkpoint
from common.training.gradient_cache import GradientCache, micro_batched
from common.training.health import HealthMonitor
from common.training.method import Method
from common.training.optimizers import LARS, adam, parameter_groups
from common.training.schedules import warmup_cosine, warmup_cosine_factor

__all__ = [
    "LARS",
    "GradientCache",
    "HealthMonitor",
    "Method",
    "adam",
    "load_checkpoint",
    "micro_batched",
    "parameter_groups",
    "warmup_cosine",
    "warmup_cosine_factor",
]
