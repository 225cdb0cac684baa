"""What all frozen protocols share: embeddings made once, in eval mode, leaving training alone."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DistributedSampler

from common.distributed import gather_rows, rank, world_size
from common.errors import ArgumentError, require, require_int
from common.training.randomness import random_state, restore_random_state


class Embedded(NamedTuple):
    """Embeddings ``(n, d)`` of the samples of a loader and their classes ``(n,)``, if known."""

    embeddings: Tensor
    labels: Tensor | None


class EmbeddingScores(Callback):
    """Base of the callbacks that score ``pl_module.encode`` at the end of epochs.

    All such callbacks of a Trainer that are due share one pass over each loader, in eval mode and
    without gradient, in the precision of training; afterwards the modes of all modules and the
    state of Python's, NumPy's and torch's random generators are what they were.

    A batch is a pair ``(x, y)``, of which ``encode(x)`` makes ``(n, d)``, or an object with ``y``,
    such as a PyTorch Geometric ``Data``, which ``encode`` takes whole. ``y`` is ``(n,)``, integers.

    Args:
        loaders: of samples without augmentation: the last is scored, the first is what a
            classifier is fitted on. None: what ``val_dataloader`` of the data module returns.
        every_n_epochs: epochs between scores; the last epoch of ``max_epochs`` is always scored.
        name: of the scores in the log.

    Attributes:
        history: per score ``epoch`` and the scores. Kept in checkpoints.

    Logged: ``knn/top1`` and so on, at the end of the epoch, so that a ``ModelCheckpoint`` can
    monitor it. Embeddings stay on the device of the model.

    Distributed: the ranks take the batches of a loader in turn (with a ``DistributedSampler``, each
    all of its own), then all embeddings are gathered and every rank computes the same scores.

    Raises:
        ArgumentError: no loader, batches of another kind, embeddings that are not ``(n, d)``.
    """

    def __init__(
        self,
        loaders: Sequence[Iterable[Any]] | None = None,
        every_n_epochs: int = 1,
        name: str = "",
    ):
        self.loaders = loaders
        self.every_n_epochs = require_int("every_n_epochs", every_n_epochs, 1)
        self.name = name
        self.history: list[dict[str, Any]] = []

    @property
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    def score(self, fitted_on: Embedded | None, scored: Embedded) -> dict[str, float]:
        """The scores of one evaluation; ``fitted_on`` is None where there is only one loader."""
        raise NotImplementedError(f"{type(self).__name__} must define score(fitted_on, scored)")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        together = [c for c in cast(Any, trainer).callbacks if isinstance(c, EmbeddingScores)]
        if together[0] is not self:
            return
        due = [callback for callback in together if callback._is_due(trainer)]
        if not due:
            return
        default = _validation_loaders(trainer) if any(c.loaders is None for c in due) else []
        embedded: dict[int, Embedded] = {}
        with evaluating(pl_module):
            for callback in due:
                loaders = list(default if callback.loaders is None else callback.loaders)
                require(bool(loaders), "loaders", loaders, "at least one loader")
                for loader in (loaders[0], loaders[-1]):
                    if id(loader) not in embedded:
                        embedded[id(loader)] = embed(trainer, pl_module, loader)
                first = embedded[id(loaders[0])] if len(loaders) > 1 else None
                scores = callback.score(first, embedded[id(loaders[-1])])
                callback.history.append({"epoch": trainer.current_epoch, **scores})
                pl_module.log_dict(
                    {f"{callback.name}/{name}": value for name, value in scores.items()},
                    on_step=False,
                    on_epoch=True,
                    batch_size=1,
                    sync_dist=True,
                )

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = list(state_dict["history"])

    def _is_due(self, trainer: Trainer) -> bool:
        epochs = trainer.current_epoch + 1
        return epochs % self.every_n_epochs == 0 or epochs == trainer.max_epochs


@contextmanager
def evaluating(model: LightningModule) -> Iterator[None]:
    """Within it ``model`` is in eval mode and without gradient; modes and generators come back."""
    modes = {module: module.training for module in model.modules()}
    state = random_state()
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        restore_random_state(state)
        for module, training in modes.items():
            module.training = training


def prepared(trainer: Trainer, model: LightningModule, batch: Any) -> Any:
    """A loader's batch as a step would get it: converted, through the hooks, on the device."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = model._on_before_batch_transfer(batch)
    return trainer.strategy.batch_to_device(batch)


def embed(trainer: Trainer, model: LightningModule, loader: Iterable[Any]) -> Embedded:
    """Embeddings of all batches of a loader, in its order, from all ranks on each."""
    ranks = world_size()
    shared = ranks > 1 and not isinstance(getattr(loader, "sampler", None), DistributedSampler)
    if shared and (not hasattr(loader, "__len__") or len(cast(Any, loader)) < ranks):
        ranks, shared = 1, False  # every rank encodes everything
    rows: list[Tensor] = []
    labels: list[Tensor] = []
    places: list[Tensor] = []
    for index, batch in enumerate(loader):
        if shared and index % ranks != rank():
            continue
        x, y = _taken_apart(prepared(trainer, model, batch))
        with trainer.precision_plugin.forward_context():
            z = cast(Any, model).encode(x)
        require(z.ndim == 2, "encode(batch)", tuple(z.shape), "of shape (n, d)")
        rows.append(z.to(torch.promote_types(z.dtype, torch.float32)))
        places.append(torch.full((len(z),), index, device=z.device))
        if y is not None:
            if len(y) != len(z):
                raise ArgumentError(
                    f"y must have one class for each row of encode(batch), got {len(y)} for "
                    f"{len(z)} rows"
                )
            labels.append(y.to(z.device))
    if not rows or (labels and len(labels) != len(rows)):
        raise ArgumentError(
            "loaders must give at least one batch, and either all or no batches with y, got "
            f"{len(rows)} batches, {len(labels)} with y"
        )
    embeddings, label = torch.cat(rows), torch.cat(labels) if labels else None
    if ranks == 1:
        return Embedded(embeddings, label)
    order = gather_rows(torch.cat(places))[0].argsort(stable=True)
    return Embedded(
        gather_rows(embeddings)[0][order],
        None if label is None else gather_rows(label)[0][order],
    )


def labelled(embedded: Embedded | None, which: str) -> tuple[Tensor, Tensor]:
    """Embeddings and labels, or an ArgumentError that says what is missing."""
    if embedded is None:
        raise ArgumentError(
            "loaders must be two, of the samples to fit on and of those to score, got one"
        )
    if embedded.labels is None:
        raise ArgumentError(f"batches of the {which} loader have no y, which this score needs")
    return embedded.embeddings, embedded.labels


def topk_accuracy(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """``top1``, and ``top5`` with more than five classes, of ``(n, c)`` scores.

    Example:
        >>> topk_accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        {'top1': 0.5}
    """
    ranked = scores.topk(5 if scores.shape[1] > 5 else 1, dim=1).indices
    hits = ranked == labels[:, None].to(ranked.device)
    found = {"top1": float(hits[:, 0].double().mean())}
    if scores.shape[1] > 5:
        found["top5"] = float(hits.any(dim=1).double().mean())
    return found


def _taken_apart(batch: Any) -> tuple[Any, Tensor | None]:
    if isinstance(batch, tuple | list):
        if len(batch) == 2:
            return batch[0], batch[1]
        raise ArgumentError(f"a batch must be (x, y) or have y, got {len(batch)} items")
    if isinstance(batch, Tensor):
        return batch, None
    return batch, getattr(batch, "y", None)


def _validation_loaders(trainer: Trainer) -> Sequence[Iterable[Any]]:
    datamodule = cast(Any, trainer).datamodule
    loaders = datamodule.val_dataloader() if datamodule is not None else trainer.val_dataloaders
    if loaders is None:
        raise ArgumentError("loaders must be given where there are no validation loaders, got None")
    return loaders if isinstance(loaders, list | tuple) else [loaders]
