"""Objectives: tensors in, scalar out. Each is a function first and a thin module second."""

from common.losses._streaming import streamed_logsumexp
from common.losses.alignment import alignment
from common.losses.block_contrast import BlockContrast, block_contrast
from common.losses.debiased_contrast import DebiasedContrast, debiased_contrast
from common.losses.decoupled_contrast import DecoupledContrast, decoupled_contrast
from common.losses.hard_contrast import HardContrast, hard_contrast
from common.losses.info_nce import InfoNCE, info_nce
from common.losses.neighbor_contrast import (
    NeighborContrast,
    influence_augmented_contrast,
    neighbor_contrast,
)
from common.losses.nt_xent import NTXent, nt_xent
from common.losses.prototypical_contrast import concentration, prototypical_contrast
from common.losses.self_training import (
    self_training_loss,
    student_t_log_assignment,
    target_distribution,
)
from common.losses.supervised_contrast import SupervisedContrast, supervised_contrast
from common.losses.swapped_prediction import swapped_prediction
from common.losses.uniformity import uniformity

__all__ = [
    "BlockContrast",
    "DebiasedContrast",
    "DecoupledContrast",
    "HardContrast",
    "InfoNCE",
    "NTXent",
    "NeighborContrast",
    "SupervisedContrast",
    "alignment",
    "block_contrast",
    "concentration",
    "debiased_contrast",
    "decoupled_contrast",
    "hard_contrast",
    "influence_augmented_contrast",
    "info_nce",
    "neighbor_contrast",
    "nt_xent",
    "prototypical_contrast",
    "self_training_loss",
    "streamed_logsumexp",
    "student_t_log_assignment",
    "supervised_contrast",
    "swapped_prediction",
    "target_distribution",
    "uniformity",
]
