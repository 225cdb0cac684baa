"""Base of all methods."""

from typing import TYPE_CHECKING, Any

from lightning import LightningDataModule, LightningModule
from torch import Tensor

from common.training.randomness import random_state, restore_random_state


class Method(LightningModule):
    """A LightningModule whose checkpoints say what they hold and resume to the same numbers.

    A subclass writes ``encode(batch) -> (n, d)``, the representation that users take away, and its
    ``training_step``, which returns the loss, or a dict of it and of what callbacks may look at:
    :class:`~common.training.HealthMonitor` lists the entries.

    A checkpoint carries the import path of the class, for ``clustrast embed``, and the state of the
    random generators: a run that is stopped after an epoch and resumed with ``ckpt_path`` draws the
    same numbers as one that was never stopped.
    """

    if TYPE_CHECKING:
        hparams: Any

    _resumed_state: dict[str, Any] | None = None

    def encode(self, batch: Any) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define encode(batch) -> (n, d)")

    def before_fit(self, datamodule: LightningDataModule, **trainer_options: Any) -> None:
        """Stages that come before ``Trainer.fit``, such as pre-training; none by default.

        The command line and the benchmarks call it before a run that does not resume.

        Args:
            datamodule: what ``fit`` will train on.
            trainer_options: of the Trainers of these stages, such as ``accelerator``.
        """

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint["random_state"] = random_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._resumed_state = checkpoint.get("random_state")

    def on_fit_start(self) -> None:
        if self._resumed_state is not None:
            restore_random_state(self._resumed_state)
            self._resumed_state = None
