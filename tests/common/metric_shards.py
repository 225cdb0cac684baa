"""What the two ranks of a test run. Kept apart, since each of them imports this module anew."""

from pathlib import Path

import torch
from torch import Tensor

from common.metrics import ClusterAccuracy, MatchedMacroF1


def noisy(n: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Clusters ``(n,)`` and the classes ``(n,)`` that six in ten of them stand for."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(k, (n,), generator=generator)
    kept = torch.rand(n, generator=generator) < 0.6
    preds = torch.where(kept, (target + 1) % k, torch.randint(k, (n,), generator=generator))
    return preds, target


def score_shard(rank: int, folder: str) -> None:
    """Writes ``rank.pt``: the scores of both metrics when either rank has every other sample."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    preds, target = noisy(301, 5)
    scores = {}
    for metric in (ClusterAccuracy(5), MatchedMacroF1(5)):
        metric.update(preds[rank::2], target[rank::2])
        scores[type(metric).__name__] = metric.compute()
    torch.save(scores, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()
