"""Learning rates that change with every step."""

from functools import partial
from math import cos, inf, isinf, pi
from typing import Any

from lightning.pytorch import Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from common.errors import ArgumentError, require, require_int


def warmup_cosine_factor(
    step: int,
    total_steps: int,
    warmup_steps: int = 0,
    *,
    start: float = 0.0,
    end: float = 0.0,
    reach_base: bool = False,
) -> float:
    r"""What the base rate is multiplied by at step *t*: a line up, then half a cosine down.

    .. math::
        s + (1 - s) \frac{t}{w} \;\; (t < w), \qquad
        e + \frac{1 - e}{2} \Bigl(1 + \cos \pi \frac{t - w}{T - w}\Bigr) \;\; (w \le t \le T)

    Args:
        step: *t*, from 0; past the last step the factor stays at ``end``.
        total_steps: *T*.
        warmup_steps: *w*, from 0 to *T*.
        start: *s*, factor of the first step if there is a warm-up.
        end: *e*, factor after the last step.
        reach_base: the warm-up's last step is at the base rate, *t / (w - 1)*, as SwAV has it; the
            cosine's first step is there again.

    Raises:
        ArgumentError: an argument out of its range.

    Example:
        >>> [round(warmup_cosine_factor(t, 6, 2, start=0.5), 2) for t in range(7)]
        [0.5, 0.75, 1.0, 0.85, 0.5, 0.15, 0.0]
    """
    step = require_int("step", step, 0)
    total_steps = require_int("total_steps", total_steps, 1)
    warmup_steps = require_int("warmup_steps", warmup_steps, 0, total_steps)
    for name, value in (("start", start), ("end", end)):
        require(0 <= value <= 1, name, value, "from 0 to 1")
    if step < warmup_steps:
        last = max(warmup_steps - 1, 1) if reach_base else warmup_steps
        return start + (1 - start) * step / last
    if step >= total_steps:
        return end
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return end + (1 - end) * (1 + cos(pi * progress)) / 2


def warmup_cosine(
    optimizer: Optimizer,
    trainer: Trainer,
    *,
    warmup_epochs: float = 0,
    start: float = 0.0,
    end: float = 0.0,
    reach_base: bool = False,
) -> dict[str, Any]:
    """What ``configure_optimizers`` returns for warm-up and cosine, once a step, over a whole fit.

    Steps are those of the optimiser: batches of an epoch, per rank, over accumulated batches.

    Args:
        optimizer: its rates, group by group, are the base rates.
        trainer: tells the number of steps; its data must be attached, as they are in ``fit``.
        warmup_epochs: may be a fraction; rounded to whole steps.
        start: see :func:`warmup_cosine_factor`, as for ``end`` and ``reach_base``.

    Returns:
        ``optimizer`` and ``lr_scheduler`` with interval ``"step"``.

    Raises:
        ArgumentError: training without an end, or a warm-up longer than it or without epochs.

    Example:
        >>> def configure_optimizers(self):
        ...     optimizer = LARS(self.parameters(), lr=4.8, weight_decay=1e-6)
        ...     return warmup_cosine(optimizer, self.trainer, warmup_epochs=10, end=0.001)
    """
    total_steps = trainer.estimated_stepping_batches  # attaches the data
    if isinf(total_steps):
        raise ArgumentError("a cosine needs an end: give the Trainer max_epochs or max_steps")
    warmup_steps = 0
    if warmup_epochs:
        steps_per_epoch = -(-trainer.num_training_batches // trainer.accumulate_grad_batches)
        require(steps_per_epoch < inf, "warmup_epochs", warmup_epochs, "0 without epochs")
        most = total_steps / steps_per_epoch
        allowed = f"from 0 to the {most:g} epochs of training"
        require(0 <= warmup_epochs <= most, "warmup_epochs", warmup_epochs, allowed)
        warmup_steps = round(warmup_epochs * steps_per_epoch)
    factor = partial(
        warmup_cosine_factor,
        total_steps=int(total_steps),
        warmup_steps=warmup_steps,
        start=start,
        end=end,
        reach_base=reach_base,
    )
    scheduler = LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
