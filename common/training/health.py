"""Whether a run is learning or has collapsed."""

from collections.abc import Mapping
from math import exp, inf, isfinite, isinf, nan
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.functional import normalize

from common.distributed import all_reduce
from common.errors import ArgumentError, require, require_int

LONGEST_WINDOW = 200
TRAINING_IN_WINDOWS = 50
LOSS_MARGIN = 0.01
LOWEST_SPREAD = 0.1
LOWEST_SHARE = 0.1
LOWEST_RANK = 1.5
SCORE_MARGIN = 0.01
ROUNDING = 1e-6  # of moments of unit rows, summed in float32


class HealthMonitor(Callback):
    r"""Logs the vital signs of training and says once, in plain words, when a run has collapsed.

    It reads the dict that ``training_step`` returns, of which every entry may be missing:

    =====================  =============================================  ==========================
    entry                  what it is                                     readings
    =====================  =============================================  ==========================
    ``"loss"``             scalar                                         ``loss``, ``loss_ratio``
    ``"trivial_loss"``     the loss of a model that learned nothing: ln   ``loss_ratio``
                           k for codes over *k* prototypes, ln n for a
                           contrast among *n* candidates
    ``"assignment"``       ``(n, k)`` soft codes or ``(n,)`` labels       ``clusters_in_use``,
                                                                          ``code_entropy``
    ``"embedding"``        ``(n, d)``                                     ``embedding_std``,
                                                                          ``effective_rank``
    ``"positive_score"``   similarities, any shape                        ``positive_score``
    ``"negative_score"``   similarities, any shape                        ``negative_score``
    =====================  =============================================  ==========================

    A step that returns a bare tensor shows its loss only. A reading covers a window of steps:

    - ``loss_ratio``: mean loss over mean trivial loss.
    - ``clusters_in_use``: share of clusters that hold a sample, of those that could: the smaller of
      *k* and the samples of the window.
    - ``code_entropy``: entropy of the mean code in nats, ln k when all clusters are as large.
    - ``embedding_std``: standard deviation of the normalised embeddings, root mean square over
      dimensions, times :math:`\sqrt d`: 1 when they point everywhere, 0 when all point the same
      way.
    - ``effective_rank``: exponential of the entropy of the singular values, divided by their sum,
      of the centred normalised embeddings: between 1 and *d*.
    - ``positive_score``, ``negative_score``: means.

    It warns when one of these has held in ``patience`` windows in a row: a reading is not finite;
    the loss is at least 0.99 times the trivial one; at most a tenth of the clusters are in use, or
    one; ``embedding_std`` is below 0.1 (a mean cosine above 0.99); ``effective_rank`` is below 1.5,
    of at least 3 dimensions; positives score no higher than negatives, to 1 % of the larger. There
    is one warning in the life of the monitor, of all that is wrong at that moment, and what to try.
    Nothing is stopped.

    Args:
        trivial_loss: where the steps do not return it.
        n_clusters: *k*, where assignments are labels.
        window: training batches of a reading; None is a fiftieth of the training, at most 200.
        patience: windows in a row before a warning.

    Attributes:
        readings: of the last window.
        warning: what was said, or None.

    Logged: ``health/loss_ratio`` and so on, at the end of each window. The state is kept in
    checkpoints, except for an unfinished window.

    Distributed: a window's sums are reduced over the ranks; every rank has the same readings, and
    rank 0 speaks.

    Source:
        effective rank: Roy and Vetterli, EUSIPCO 2007; spread of normalised embeddings: Chen and
        He, Exploring Simple Siamese Representation Learning, CVPR 2021; advice on ln k: README of
        SwAV (Caron et al., NeurIPS 2020).

    Example:
        >>> monitor = HealthMonitor(trivial_loss=8.006)  # ln 3000, SwAV
        >>> # Trainer(callbacks=[monitor]).fit(model, data)
        >>> monitor.readings, monitor.warning
        ({}, None)
    """

    def __init__(
        self,
        trivial_loss: float | None = None,
        n_clusters: int | None = None,
        window: int | None = None,
        patience: int = 3,
    ):
        if trivial_loss is not None:
            require(0 < trivial_loss < inf, "trivial_loss", trivial_loss, "above 0")
        if n_clusters is not None:
            n_clusters = require_int("n_clusters", n_clusters, 2)
        if window is not None:
            window = require_int("window", window, 1)
        self.trivial_loss = trivial_loss
        self.n_clusters = n_clusters
        self.window = window
        self.patience = require_int("patience", patience, 1)
        self.readings: dict[str, float] = {}
        self.warning: str | None = None
        self._length: int | None = None  # of a window of this fit
        self._ill: dict[str, int] = {}  # windows in a row, by symptom
        self._sums = _Sums()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sums, self._length = _Sums(), self.window

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not isinstance(outputs, Mapping):
            outputs = {} if outputs is None else {"loss": outputs}
        with torch.no_grad(), torch.autocast(pl_module.device.type, enabled=False):
            self._sums.add(outputs, self.trivial_loss, self.n_clusters)
        if self._sums.steps < self._window(trainer):
            return
        totals, self._sums = self._sums.reduced(), _Sums()
        self.readings = _readings(totals)
        values = {f"health/{name}": value for name, value in self.readings.items()}
        pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)
        symptoms = _symptoms(self.readings, totals)
        self._ill = {name: self._ill.get(name, 0) + 1 for name in symptoms}
        lasting = [text for name, text in symptoms.items() if self._ill[name] >= self.patience]
        if lasting and self.warning is None:
            self.warning = f"{type(pl_module).__name__} looks unhealthy. " + " ".join(lasting)
            rank_zero_warn(self.warning)

    def state_dict(self) -> dict[str, Any]:
        return {"readings": self.readings, "warning": self.warning, "ill": self._ill}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.readings = dict(state_dict["readings"])
        self.warning = state_dict["warning"]
        self._ill = dict(state_dict["ill"])

    def _window(self, trainer: Trainer) -> int:
        if self._length is None:
            batches = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
            longest = LONGEST_WINDOW if isinf(batches) else int(batches) // TRAINING_IN_WINDOWS
            self._length = min(max(longest, 1), LONGEST_WINDOW)
        return self._length


class _Sums:
    """What a window adds up, on the device of training, so that no step waits for it."""

    def __init__(self) -> None:
        self.steps = 0
        self.totals: dict[str, Tensor] = {}

    def add(
        self, outputs: Mapping[str, Any], trivial_loss: float | None, n_clusters: int | None
    ) -> None:
        self.steps += 1
        if (loss := outputs.get("loss")) is not None:
            self._add_mean("loss", loss)
            trivial = outputs.get("trivial_loss", trivial_loss)
            if trivial is not None:
                self._add_mean("trivial_loss", torch.as_tensor(trivial, device=loss.device))
        for name in ("positive_score", "negative_score"):
            if name in outputs:
                self._add_mean(name, outputs[name])
        if "embedding" in outputs:
            self._add_embedding(outputs["embedding"])
        if "assignment" in outputs:
            self._add_assignment(outputs["assignment"], n_clusters)

    def _add_mean(self, name: str, values: Tensor) -> None:
        total = _at_least_float32(values).sum()
        self._add(name, torch.stack([total, torch.full_like(total, values.numel())]))

    def _add_embedding(self, z: Tensor) -> None:
        require(z.ndim == 2, "outputs['embedding']", tuple(z.shape), "of shape (n, d)")
        unit = normalize(_at_least_float32(z), dim=1)
        ones = unit.new_ones(len(unit), 1)
        extended = torch.cat([unit, ones], dim=1)  # (n, d + 1)
        self._add("embedding", extended.T @ extended)  # second moments, sums and number

    def _add_assignment(self, assignment: Tensor, n_clusters: int | None) -> None:
        soft = assignment.ndim == 2
        k = assignment.shape[1] if soft else n_clusters
        if k is None:
            raise ArgumentError("n_clusters is needed where outputs['assignment'] are labels")
        labels = assignment.argmax(dim=1) if soft else assignment.long()
        sizes = torch.zeros(k, device=labels.device)
        sizes.scatter_add_(0, labels, torch.ones_like(labels, dtype=sizes.dtype))
        mass = _at_least_float32(assignment).sum(dim=0) if soft else sizes
        self._add("assignment", torch.stack([mass, sizes.to(mass.dtype)]))

    def _add(self, name: str, values: Tensor) -> None:
        self.totals[name] = self.totals[name] + values if name in self.totals else values

    def reduced(self) -> dict[str, Tensor]:
        """Sums over all ranks, on the CPU."""
        return {name: all_reduce(values).cpu().double() for name, values in self.totals.items()}


def _at_least_float32(x: Tensor) -> Tensor:
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


def _readings(totals: dict[str, Tensor]) -> dict[str, float]:
    readings: dict[str, float] = {
        name: float(totals[name][0] / totals[name][1])
        for name in ("loss", "positive_score", "negative_score")
        if name in totals
    }
    if "trivial_loss" in totals:
        readings["loss_ratio"] = float(totals["loss"][0] / totals["trivial_loss"][0])
    if "assignment" in totals:
        mass, sizes = totals["assignment"]
        readings["clusters_in_use"] = float((sizes > 0).sum()) / _possible(totals)
        readings["code_entropy"] = float(torch.special.entr(mass / mass.sum()).sum())
    if "embedding" in totals:
        moments = totals["embedding"]
        n, mean = moments[-1, -1], moments[-1, :-1] / moments[-1, -1]
        covariance = moments[:-1, :-1] / n - torch.outer(mean, mean)
        readings["embedding_std"] = float(covariance.trace().clamp(min=0).sqrt())
        readings["effective_rank"] = _effective_rank(covariance)
    return readings


def _possible(totals: dict[str, Tensor]) -> int:
    """Clusters that the samples of a window could have filled."""
    sizes = totals["assignment"][1]
    return min(len(sizes), int(sizes.sum()))


def _effective_rank(covariance: Tensor) -> float:
    if not covariance.isfinite().all():
        return nan
    variances = torch.linalg.eigvalsh(covariance)
    singular = variances.where(variances > ROUNDING, 0).sqrt()
    return exp(float(torch.special.entr(singular / singular.sum().clamp(min=ROUNDING)).sum()))


def _symptoms(readings: dict[str, float], totals: dict[str, Tensor]) -> dict[str, str]:
    """What is wrong, in words, by a name that stays the same from window to window."""
    found: dict[str, str] = {}
    for name, value in readings.items():
        if not isfinite(value):
            found[name] = (
                f"{name} is {value}: lower the learning rate, lengthen the warm-up, clip gradients "
                "or leave half precision."
            )
    if readings.get("loss_ratio", 0) >= 1 - LOSS_MARGIN:
        trivial = readings["loss"] / readings["loss_ratio"]
        found["trivial loss"] = (
            f"The loss, {readings['loss']:.4g}, is stuck at {trivial:.4g}, what a model has that "
            "learned nothing: change the learning rate or lengthen the warm-up; with prototypes "
            "lower epsilon (0.03 for 0.05), freeze them for longer, use fewer or milder crops; "
            "with a contrast lower the temperature or enlarge the batch."
        )
    if "assignment" in totals and readings["clusters_in_use"] < 1:
        possible = _possible(totals)
        in_use = round(readings["clusters_in_use"] * possible)
        if in_use <= max(1, LOWEST_SHARE * possible):
            found["clusters"] = (
                f"All samples are in {in_use} of {possible} clusters: balance the codes (Sinkhorn "
                "with a higher epsilon or more iterations), place the centroids anew by k-means, "
                "or give the clustering loss less weight."
            )
    if readings.get("embedding_std", 1) < LOWEST_SPREAD:
        found["spread"] = (
            f"The embeddings point the same way (spread {readings['embedding_std']:.2g}, 1 is "
            "best): check the stop-gradient, predictor and momentum of a method without negatives; "
            "add negatives or a uniformity, variance or balance term; lower the learning rate."
        )
    elif readings.get("effective_rank", 2) < LOWEST_RANK and len(totals["embedding"]) > 3:
        found["rank"] = (
            f"The embeddings vary along one line (effective rank {readings['effective_rank']:.2g} "
            f"of {len(totals['embedding']) - 1}): add a term that decorrelates dimensions or "
            "whitens, take the embedding before the projection head, or lower weight decay."
        )
    if {"positive_score", "negative_score"} <= readings.keys():
        positive, negative = readings["positive_score"], readings["negative_score"]
        if positive - negative <= SCORE_MARGIN * max(abs(positive), abs(negative)):
            found["scores"] = (
                f"Positives score {positive:.4g}, no higher than negatives, {negative:.4g}: check "
                "that row i of one view belongs to row i of the other, and that the views share "
                "what is to be learned."
            )
    if not readings:
        found["nothing to read"] = (
            "training_step returned nothing that HealthMonitor reads; its docstring lists what."
        )
    return found
