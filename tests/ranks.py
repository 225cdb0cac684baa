"""Runs a function on two gloo ranks and gives back what each returned."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing


def on_ranks(function: Callable[..., Any], folder: Path, *args: Any, ranks: int = 2) -> list[Any]:
    """What ``function(*args)`` returns on each rank, in order.

    Args:
        function: of a module without fixtures of its own: every rank imports that module anew.
        folder: an empty one, for the rendezvous and the results.
        args: picklable, the same on every rank.
        ranks: number of processes, each with one thread.
    """
    multiprocessing.spawn(_run, args=(ranks, function, str(folder), args), nprocs=ranks)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]


def _run(rank: int, ranks: int, function: Callable[..., Any], folder: str, args: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks
    )
    try:
        torch.save(function(*args), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
