"""How embeddings lie on the unit sphere: alignment, uniformity, tolerance."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from common import losses
from common.errors import ArgumentError, require
from common.evaluation.embedding import Embedded, EmbeddingScores
from common.losses._similarity import unit_rows
from common.metrics.clustering import require_labels


def alignment(first: Tensor, second: Tensor, *, power: float = 2.0) -> float:
    r"""Mean distance of positive pairs, 0 when both are embedded alike.

    .. math:: \frac1n \sum_i \lVert \hat x_i - \hat y_i \rVert^{\alpha}

    Args:
        first: ``(n, d)``, of any length; normalised inside.
        second: ``(n, d)``; row *i* is the positive of row *i* of ``first``.
        power: :math:`\alpha \ge 1`.

    Raises:
        ArgumentError: shapes that differ, no row, a value that is not finite, or ``power``.

    Source:
        Wang and Isola, Understanding Contrastive Representation Learning through Alignment and
        Uniformity on the Hypersphere, ICML 2020.

    Example:
        >>> import torch
        >>> alignment(torch.eye(2), torch.eye(2).flip(0))
        2.0
    """
    require(power >= 1, "power", power, "at least 1")
    if first.shape != second.shape:
        raise ArgumentError(
            f"first and second must have one shape, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    _check("first", first, 1)
    _check("second", second, 1)
    return float(losses.alignment(first.detach(), second.detach(), alpha=power))


def uniformity(x: Tensor, *, t: float = 2.0) -> float:
    r"""How evenly embeddings cover the sphere, lower being more even; 0 when all coincide.

    .. math:: \log \frac{2}{n (n - 1)} \sum_{i < j} \exp(-t \lVert \hat x_i - \hat x_j \rVert^2)

    About :math:`-2t + 2t^2/d` for many random points in *d* dimensions. The temperature
    study (Wang and Liu, CVPR 2021) reports it with the sign reversed. As a number, and in the
    memory of :func:`common.losses.uniformity`.

    Args:
        x: ``(n, d)``, *n* at least 2; normalised inside.
        t: :math:`t > 0`.

    Raises:
        ArgumentError: fewer than two rows, a value that is not finite, or ``t``.

    Source:
        Wang and Isola, ICML 2020.

    Example:
        >>> import torch
        >>> round(uniformity(torch.eye(3)), 6)  # all pairs at distance sqrt(2)
        -4.0
    """
    require(t > 0, "t", t, "above 0")
    _check("x", x, 2)
    return float(losses.uniformity(x.detach(), t=t))


def tolerance(x: Tensor, labels: Tensor, *, conditional: bool = True) -> float:
    r"""Mean cosine of samples of the same class, 1 when each class is one point.

    .. math::
        \frac{1}{|P|} \sum_{(i, j) \in P} \hat x_i \cdot \hat x_j, \qquad
        P = \{(i, j) : i \ne j, \; y_i = y_j\}

    All classes are pooled, so that large ones count for more. Computed from the sums of the
    classes, in O(n d).

    Args:
        x: ``(n, d)``; normalised inside.
        labels: ``(n,)`` integer classes.
        conditional: as above, which is what the published values agree with; False is the formula
            as printed, the sum of same-class cosines over all :math:`n^2` pairs, *i = j* included.

    Raises:
        ArgumentError: lengths that differ, a value that is not finite, labels that are not
            integers, or no two samples of one class.

    Source:
        Wang and Liu, Understanding the Behaviour of Contrastive Loss, CVPR 2021.

    Example:
        >>> import torch
        >>> tolerance(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]), torch.tensor([0, 1, 0]))
        1.0
    """
    require_labels("labels", labels)
    if len(x) != len(labels):
        raise ArgumentError(f"x and labels must be equally long, got {len(x)} and {len(labels)}")
    _check("x", x, 1)
    unit = unit_rows(x.detach())
    names, classes = labels.to(unit.device).unique(return_inverse=True)
    sums = unit.new_zeros(len(names), unit.shape[1]).index_add_(0, classes, unit)
    sizes = classes.bincount()
    total = float(sums.square().sum())
    if not conditional:
        return total / len(x) ** 2
    pairs = int((sizes * (sizes - 1)).sum())
    require(pairs > 0, "labels", f"{len(names)} classes", "of which two samples share one")
    return (total - float(unit.square().sum())) / pairs


def _check(name: str, x: Tensor, lowest: int) -> None:
    if x.ndim != 2 or len(x) < lowest:
        raise ArgumentError(f"{name} must be (n, d), n at least {lowest}, got {tuple(x.shape)}")
    if not x.isfinite().all():
        raise ArgumentError(f"{name} must be finite, got NaN or infinity")


class GeometryScores(EmbeddingScores):
    """:func:`uniformity` of the last loader, and :func:`tolerance` where its batches have labels.

    Alignment needs two views of each sample, which a loader of plain samples does not give; the
    mean squared distance of samples of one class is twice what tolerance lacks to 1.

    Args:
        t: of uniformity.
        loaders: see :class:`~common.evaluation.embedding.EmbeddingScores`, as for the rest, the
            batches and the distributed behaviour.
        every_n_epochs: epochs between scores.
        name: of the scores in the log.

    Logged: ``geometry/uniformity``, ``geometry/tolerance``.

    Example:
        >>> GeometryScores().history
        []
    """

    def __init__(
        self,
        t: float = 2.0,
        loaders: Sequence[Iterable[Any]] | None = None,
        every_n_epochs: int = 1,
        name: str = "geometry",
    ):
        super().__init__(loaders, every_n_epochs, name)
        require(t > 0, "t", t, "above 0")
        self.t = t

    def score(self, fitted_on: Embedded | None, scored: Embedded) -> dict[str, float]:
        scores = {"uniformity": uniformity(scored.embeddings, t=self.t)}
        if scored.labels is not None:
            scores["tolerance"] = tolerance(scored.embeddings, scored.labels)
        return scores
