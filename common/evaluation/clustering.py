"""Scores of clusterings: of given labels, of frozen embeddings, and of a model while it trains."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from math import isinf
from typing import Any, Literal, NamedTuple, Self, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics.functional.clustering import normalized_mutual_info_score

from common.errors import ArgumentError, require_int
from common.evaluation.embedding import Embedded, EmbeddingScores, evaluating, labelled, prepared
from common.kmeans import KMeans
from common.metrics.clustering import accuracy_of, compact_table, macro_f1_of, require_labels

SCORES = ("acc", "nmi", "ari", "f1")


def clustering_scores(assignment: Tensor, target: Tensor) -> dict[str, float]:
    """Agreement of a clustering with classes, 1 being perfect.

    - ``acc``: accuracy after the best one-to-one matching (:func:`common.metrics.cluster_accuracy`)
    - ``nmi``: mutual information over the arithmetic mean of the entropies; 0 if nothing is shared,
      1 if there is one cluster and one class
    - ``ari``: adjusted Rand index; around 0 for a random clustering and then possibly negative
    - ``f1``: macro-F1 after the matching (:func:`common.metrics.matched_macro_f1`)

    Args:
        assignment: ``(n,)`` integer clusters or ``(n, k)`` soft codes, see :func:`hard_labels`.
        target: ``(n,)`` integer classes, none negative.

    Raises:
        ArgumentError: labels that are not integers or are negative, codes with NaN, no sample, or
            lengths that differ.

    Example:
        >>> scores = clustering_scores(torch.tensor([1, 1, 0, 0]), torch.tensor([0, 0, 1, 1]))
        >>> {name: round(score, 6) for name, score in scores.items()}
        {'acc': 1.0, 'nmi': 1.0, 'ari': 1.0, 'f1': 1.0}
    """
    labels = hard_labels(assignment).cpu()  # the table is small, and MPS has no float64
    require_labels("target", target)
    target = target.cpu()
    if len(labels) != len(target):
        raise ArgumentError(
            f"assignment and target must be equally long, got {len(labels)} and {len(target)}"
        )
    table = compact_table(labels, target)
    with torch.sparse.check_sparse_tensor_invariants(False):  # silences torch inside torchmetrics
        nmi = normalized_mutual_info_score(labels, target, average_method="arithmetic")
    return {
        "acc": float(accuracy_of(table)),
        "nmi": min(float(nmi), 1.0) if table.numel() > 1 else 1.0,
        "ari": _adjusted_rand(table),
        "f1": float(macro_f1_of(table)),
    }


def _adjusted_rand(contingency: Tensor) -> float:
    """Adjusted Rand index in float64.

    torchmetrics (1.9) multiplies pair counts as int64, which overflows from some 70,000 samples on.
    """

    def pairs(counts: Tensor) -> float:
        counts = counts.double()
        return float((counts * (counts - 1)).sum() / 2)

    agreeing = pairs(contingency)
    clusters, classes = pairs(contingency.sum(dim=1)), pairs(contingency.sum(dim=0))
    expected = clusters * classes / max(pairs(contingency.sum()), 1.0)
    most = (clusters + classes) / 2
    return 1.0 if most == expected else (agreeing - expected) / (most - expected)


def hard_labels(assignment: Tensor) -> Tensor:
    """Cluster ``(n,)`` of each sample: of ``(n, k)`` soft codes the largest, labels as they are.

    Example:
        >>> hard_labels(torch.tensor([[0.2, 0.8], [0.6, 0.4]]))
        tensor([1, 0])
    """
    if not isinstance(assignment, Tensor) or assignment.ndim != 2:
        require_labels("assignment", assignment)
        return assignment
    if not assignment.is_floating_point():
        raise ArgumentError(
            f"assignment of shape (n, k) must be floating-point codes, got {assignment.dtype}; "
            f"labels have shape (n,)"
        )
    if not assignment.numel() or assignment.isnan().any():
        raise ArgumentError(
            f"assignment must be (n, k) codes, not empty and without NaN, "
            f"got {'an empty tensor' if not assignment.numel() else 'NaN'}"
        )
    return assignment.argmax(dim=1)


def cluster_embeddings(
    embeddings: Tensor,
    target: Tensor,
    n_clusters: int,
    n_init: int = 20,
    seed: int | None = None,
    *,
    metric: Literal["euclidean", "cosine"] = "euclidean",
) -> tuple[dict[str, float], Tensor]:
    """The k-means protocol on frozen embeddings: cluster them, then score the clusters.

    Args:
        embeddings: ``(n, d)``.
        target: ``(n,)`` integer classes, used for the scores only.
        n_clusters: number of clusters.
        n_init: restarts, of which the one with the lowest k-means objective is kept.
        seed: of k-means, see :class:`common.kmeans.KMeans`.
        metric: of k-means.

    Returns:
        The scores of :func:`clustering_scores`, and the labels ``(n,)``.

    Raises:
        ArgumentError: as :class:`common.kmeans.KMeans` and :func:`clustering_scores` do.

    Example:
        >>> z = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
        >>> scores, labels = cluster_embeddings(z, torch.tensor([0, 0, 1, 1]), 2, seed=0)
        >>> scores["acc"]
        1.0
    """
    kmeans = KMeans(n_clusters, metric=metric, n_init=n_init, seed=seed)
    labels = kmeans.fit_predict(embeddings)
    return clustering_scores(labels, target), labels


class KMeansScores(EmbeddingScores):
    """:func:`cluster_embeddings` of the last loader.

    Args:
        n_clusters: None is the number of classes.
        n_init: restarts of k-means.
        seed: of k-means.
        metric: of k-means.
        loaders: see :class:`~common.evaluation.embedding.EmbeddingScores`, as for the rest, the
            batches and the distributed behaviour.
        every_n_epochs: epochs between scores.
        name: of the scores in the log.

    Logged: ``kmeans/acc``, ``kmeans/nmi``, ``kmeans/ari``, ``kmeans/f1``.

    Example:
        >>> KMeansScores(metric="cosine").history
        []
    """

    def __init__(
        self,
        n_clusters: int | None = None,
        n_init: int = 20,
        seed: int = 0,
        metric: Literal["euclidean", "cosine"] = "euclidean",
        loaders: Sequence[Iterable[Any]] | None = None,
        every_n_epochs: int = 1,
        name: str = "kmeans",
    ):
        super().__init__(loaders, every_n_epochs, name)
        self.n_clusters = None if n_clusters is None else require_int("n_clusters", n_clusters, 1)
        self.n_init = require_int("n_init", n_init, 1)
        self.seed = seed
        self.metric: Literal["euclidean", "cosine"] = metric

    def score(self, fitted_on: Embedded | None, scored: Embedded) -> dict[str, float]:
        embeddings, labels = labelled(scored, "last")
        k = self.n_clusters or len(labels.unique())
        return cluster_embeddings(
            embeddings, labels, k, self.n_init, self.seed, metric=self.metric
        )[0]


class ClusteringScores(Callback):
    """Scores a clustering model on each batch it trains on, and once more when training has ended.

    Needs batches with labels ``y`` ``(n,)`` (PyTorch Geometric ``Data``), steps that return a dict
    with ``"assignment"``, ``(n, k)`` soft or ``(n,)`` hard, and ``pl_module.assign(batch)`` giving
    the same. Labels are only looked at: nothing is selected by them.

    A training step's assignment was made before that step changed the weights, so the first entry
    of ``history`` scores the initial model. ``final`` scores the model after the last step.
    Validation and test scores are those of all batches together. In a distributed job every rank
    scores its own rows, and the logged value is that of rank 0.

    Args:
        n_clusters: number of clusters, so that an empty one shows in ``sizes`` with hard
            assignments too. None: the number of columns of the codes, or the largest label.
        prog_bar: show the scores on the progress bar.

    Attributes:
        history: per training batch ``epoch``, ``step`` (batches before this one), ``acc``, ``nmi``,
            ``ari``, ``f1`` and ``sizes``, the samples in each cluster.
        final: ``acc``, ``nmi``, ``ari``, ``f1`` and ``sizes`` over the training data, once training
            has ended; empty before.

    Both are part of the checkpoint. Logged: ``train/acc``, ``val/acc``, ``test/acc``, and so on.

    Raises:
        ArgumentError: a batch without ``y``, or a step without ``"assignment"``.

    Example:
        >>> scores = ClusteringScores(prog_bar=True)
        >>> # Trainer(callbacks=[scores]).fit(model, data)
        >>> scores.history, scores.final
        ([], {})
    """

    def __init__(self, n_clusters: int | None = None, prog_bar: bool = False):
        self.n_clusters = n_clusters
        self.prog_bar = prog_bar
        self.history: list[dict[str, Any]] = []
        self.final: dict[str, Any] = {}
        self._seen: list[_Clustered] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        entry = self._score([_clustered(outputs, batch)])
        step = trainer.fit_loop.epoch_loop.total_batch_idx
        self.history.append({"epoch": trainer.current_epoch, "step": step, **entry})
        self._log(pl_module, "train", entry)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with evaluating(pl_module):
            self.final = self._score(_assigned_training_batches(trainer, pl_module))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._seen.append(_clustered(outputs, batch))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(pl_module, "val", self._score(self._seen))
        self._seen = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._seen.append(_clustered(outputs, batch))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(pl_module, "test", self._score(self._seen))
        self._seen = []

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "final": self.final}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = list(state_dict["history"])
        self.final = dict(state_dict["final"])

    def _score(self, batches: Iterable["_Clustered"]) -> dict[str, Any]:
        """Scores and cluster sizes of some batches together."""
        labels, targets, n_columns = zip(*batches, strict=True)
        label = torch.cat(labels)
        sizes = label.bincount(minlength=self.n_clusters or max(n_columns)).tolist()
        return {**clustering_scores(label, torch.cat(targets)), "sizes": sizes}

    def _log(self, pl_module: LightningModule, stage: str, entry: dict[str, Any]) -> None:
        pl_module.log_dict(
            {f"{stage}/{name}": entry[name] for name in SCORES},
            prog_bar=self.prog_bar,
            on_step=False,
            on_epoch=True,
            batch_size=sum(entry["sizes"]),
        )


class _Clustered(NamedTuple):
    """What is kept of a scored batch: labels and targets ``(n,)``, not the ``(n, k)`` codes."""

    labels: Tensor
    target: Tensor
    n_columns: int

    @classmethod
    def of(cls, assignment: Tensor, batch: Any) -> Self:
        target = getattr(batch, "y", None)
        if target is None:
            raise ArgumentError(
                "batch.y is missing: clustering scores need labels; without labels leave the "
                "ClusteringScores callback out"
            )
        n_columns = assignment.shape[1] if assignment.ndim == 2 else 0
        return cls(hard_labels(assignment.detach()), target, n_columns)


def _clustered(outputs: Any, batch: Any) -> _Clustered:
    if not isinstance(outputs, Mapping) or "assignment" not in outputs:
        raise ArgumentError("outputs of a step must be a dict with 'assignment' to be scored")
    return _Clustered.of(outputs["assignment"], batch)


def _assigned_training_batches(trainer: Trainer, model: LightningModule) -> Iterator[_Clustered]:
    """One epoch of training, each batch prepared and assigned as the training loop would."""
    limit = trainer.fit_loop.max_batches
    loader = cast(Iterable[Any], trainer.train_dataloader)
    for batch in islice(loader, None if isinf(limit) else int(limit)):
        batch = prepared(trainer, model, batch)
        with trainer.precision_plugin.forward_context():
            assignment = cast(Any, model).assign(batch)
        yield _Clustered.of(assignment, batch)
