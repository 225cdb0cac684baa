"""What every method trains with: the base LightningModule, checkpoints, reproducible randomness."""

from common.training.checkpoint import load_checkpoint
from common.training.method import Method

__all__ = ["Method", "load_checkpoint"]
