"""Objectives: tensors in, scalar out. Each is a function first and a thin module second."""

from common.losses.block_contrast import BlockContrast, block_contrast
from common.losses.neighbor_contrast import (
    NeighborContrast,
    influence_augmented_contrast,
    neighbor_contrast,
)
from common.losses.self_training import (
    self_training_loss,
    student_t_log_assignment,
    target_distribution,
)

__all__ = [
    "BlockContrast",
    "NeighborContrast",
    "block_contrast",
    "influence_augmented_contrast",
    "neighbor_contrast",
    "self_training_loss",
    "student_t_log_assignment",
    "target_distribution",
]
