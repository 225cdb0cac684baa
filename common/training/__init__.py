"""What every method trains with: the base LightningModule, checkpoints, reproducible randomness."""

from common.training.checkpoint import load_checkpoint
from common.training.method import Method
from common.training.optimizers import adam

__all__ = ["Method", "adam", "load_checkpoint"]
