"""The objectives that pass the contract, and what each promises. A new one joins by one line."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from common.adjacency import cumulative_power, row_normalized_adjacency
from common.distributed import rank, world_size
from common.losses import (
    alignment,
    block_contrast,
    debiased_contrast,
    decoupled_contrast,
    hard_contrast,
    info_nce,
    neighbor_contrast,
    nt_xent,
    prototypical_contrast,
    self_training_loss,
    student_t_log_assignment,
    supervised_contrast,
    swapped_prediction,
    uniformity,
)

N, D, K, M = 24, 6, 3, 10

Function = Callable[[Tensor, Tensor, bool], Tensor]


@dataclass(frozen=True)
class Objective:
    """An objective as a function of the samples alone.

    None of them looks at values: inside a training step that would wait for the device. NaN in any
    sample gives the loss NaN.

    Args:
        function: of the samples ``(n, D)``, the position ``(n,)`` of each in the whole set, which
            anything else it needs is bound to, and whether they are sharded over the ranks.
        scale_invariant: to one positive factor on all embeddings.
        fewest: number of samples; fewer are refused.
        sharded: two ranks with half the samples each have the gradient of one with all.
    """

    function: Function
    scale_invariant: bool = True
    fewest: int = 1
    sharded: bool = True


def pairs(loss: Callable[..., Tensor], exchanges: bool = True, **options) -> Function:
    """A pairwise objective whose samples hold the two views side by side.

    Args:
        exchanges: it has the keyword ``distributed``.
        options: by keyword; tensors follow the samples to their type.
    """

    def function(z: Tensor, index: Tensor, distributed: bool) -> Tensor:
        fitting = {k: v.to(z) if isinstance(v, Tensor) else v for k, v in options.items()}
        if exchanges:
            fitting["distributed"] = distributed
        return loss(*z.chunk(2, dim=1), **fitting)

    return function


def normal(n: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)


def ring_weights(index: Tensor) -> Tensor:
    n = len(index)
    place = torch.empty_like(index)
    place[index] = torch.arange(n, device=index.device)
    ring = torch.stack([place, place.roll(-1)])
    return cumulative_power(row_normalized_adjacency(ring, n), 2)


def contrast_with_ring(z: Tensor, index: Tensor, distributed: bool) -> Tensor:
    return neighbor_contrast(z, ring_weights(index), inverse_temperature=0.5)


def block_contrast_with_ring(z: Tensor, index: Tensor, distributed: bool) -> Tensor:
    return block_contrast(z, ring_weights(index), index * K // len(z), K)


def self_training_to_corners(z: Tensor, index: Tensor, distributed: bool) -> Tensor:
    corners = torch.eye(K, z.shape[1], dtype=z.dtype, device=z.device)
    log_q = student_t_log_assignment(z, corners)
    fixed = torch.eye(K, dtype=log_q.dtype, device=z.device)[index % K]
    return self_training_loss(log_q, 0.9 * fixed + 0.1 / K)


def supervised_by_thirds(z: Tensor, index: Tensor, distributed: bool) -> Tensor:
    views = z.chunk(2, dim=1)
    return supervised_contrast(*views, labels=index % K, temperature=0.5, distributed=distributed)


def prototypes_by_thirds(z: Tensor, index: Tensor, distributed: bool) -> Tensor:
    return prototypical_contrast(z, normal(K, D).to(z), index % K, temperature=0.5)


def swapped_to_thirds(z: Tensor, index: Tensor, distributed: bool) -> Tensor:
    code = torch.eye(K, dtype=z.dtype, device=z.device)[index % K]
    return swapped_prediction(z.chunk(2, dim=1), [code, 0.7 * code + 0.1], temperature=0.5)


def uniform(z: Tensor, index: Tensor, distributed: bool) -> Tensor:
    return uniformity(z, distributed=distributed)


OBJECTIVES = {
    "alignment": Objective(pairs(alignment, exchanges=False)),
    "block_contrast": Objective(block_contrast_with_ring, sharded=False),
    "debiased_contrast": Objective(pairs(debiased_contrast, temperature=0.5), fewest=2),
    "decoupled_contrast": Objective(pairs(decoupled_contrast, temperature=0.5), fewest=2),
    "hard_contrast": Objective(pairs(hard_contrast, temperature=0.5), fewest=2),
    "info_nce": Objective(pairs(info_nce, temperature=0.5)),
    "info_nce, sharp": Objective(pairs(info_nce, temperature=0.01)),
    "info_nce, queue": Objective(
        pairs(info_nce, negatives=normal(M, D // 2, seed=1), in_batch=True, temperature=0.5)
    ),
    "neighbor_contrast": Objective(contrast_with_ring, sharded=False),
    "nt_xent": Objective(pairs(nt_xent, temperature=0.5)),
    "nt_xent, sharp": Objective(pairs(nt_xent, temperature=0.01)),
    "prototypical_contrast": Objective(prototypes_by_thirds),
    "self_training": Objective(self_training_to_corners, scale_invariant=False),
    "supervised_contrast": Objective(supervised_by_thirds),
    "swapped_prediction": Objective(swapped_to_thirds, scale_invariant=False),
    "uniformity": Objective(uniform, fewest=2),
}


def gradient_on_rank() -> dict[str, list[Tensor]]:
    """Of each sharded objective: its value and the gradient of the parameters of a linear encoder,
    in DistributedDataParallel where there are ranks, each with its part of the samples."""
    own = torch.arange(N).chunk(world_size())[rank()]
    results = {}
    for name, objective in OBJECTIVES.items():
        if not objective.sharded:
            continue
        encoder = torch.nn.Linear(D, D, bias=False).double()
        encoder.weight.data.copy_(normal(D, D, seed=2))
        model = DistributedDataParallel(encoder) if world_size() > 1 else encoder
        loss = objective.function(model(normal(N, D)[own]), own, world_size() > 1)
        loss.backward()
        results[name] = [loss.detach(), encoder.weight.grad]
    return results
