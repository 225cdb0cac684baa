r"""SCGC: Self-Supervised Contrastive Graph Clustering (Kulatilleke et al., arXiv 2204.12656).

A plain MLP embeds node attributes. The graph enters only through a contrastive loss that pulls
each node towards its neighbourhood of *r* hops, weighted by powers of the normalised adjacency,
while self-training sharpens the soft assignment to *k* centroids:

.. math:: \mathcal{L} = \beta\, \mathrm{KL}(P \| Q) + \alpha\, \mathcal{L}_{NC}(Z, \Gamma)
    \;(+\; \mathcal{L}_{rec})

SCGC has :math:`\Gamma = A^r` and keeps the autoencoder's reconstruction loss; SCGC* has
:math:`\Gamma = A + \dots + A^r` (influence augmented contrast) and no decoder.
"""

from typing import Any, Literal

from torch import Tensor, nn
from torch_geometric.data import Data

from common.adjacency import adjacency_power, cumulative_power
from common.errors import require
from common.losses import NeighborContrast, self_training_loss, student_t_log_assignment
from common.nn import mlp
from graphs.clustering.autoencoder import Autoencoder, reconstruction_loss
from graphs.clustering.self_training import SelfTrainedClustering


class SCGC(SelfTrainedClustering):
    """Clusters the nodes of an attributed graph.

    Args:
        in_dim: width of the node attributes.
        n_clusters: *k*.
        variant: ``"scgc"`` or ``"scgc*"``.

    The other arguments, the batches and the order of training are those of
    :class:`~graphs.clustering.self_training.SelfTrainedClustering`; the defaults of the loss are
    those of the official code.
    """

    def __init__(
        self,
        in_dim: int,
        n_clusters: int,
        variant: Literal["scgc", "scgc*"] = "scgc*",
        alpha: float = 2.0,
        beta: float = 0.1,
        order: int = 2,
        inverse_temperature: float = 1.0,
        **kwargs: Any,
    ):
        require(variant in ("scgc", "scgc*"), "variant", variant, "'scgc' or 'scgc*'")
        super().__init__(in_dim, n_clusters, alpha, beta, order, inverse_temperature, **kwargs)
        self.decoder: nn.Module | None = None
        if variant == "scgc":
            self.decoder = mlp(*reversed(self.dims))

    def make_contrast(self, adjacency: Tensor) -> NeighborContrast:
        power = adjacency_power if self.hparams.variant == "scgc" else cumulative_power
        weights = power(adjacency, self.hparams.order)
        return NeighborContrast(weights, self.hparams.inverse_temperature)

    def start_from(self, autoencoder: Autoencoder) -> None:
        super().start_from(autoencoder)
        if self.decoder is not None:
            self.decoder.load_state_dict(autoencoder.decoder.state_dict())

    def training_step(self, graph: Data, batch_idx: int) -> dict[str, Tensor]:
        z = self.encode(graph)  # (n, d)
        log_q = student_t_log_assignment(z, self.centroids)  # (n, k)
        loss = self.hparams.beta * self_training_loss(log_q)
        if self.hparams.alpha:
            loss = loss + self.hparams.alpha * self.contrast(z)
        if self.decoder is not None:
            loss = loss + reconstruction_loss(self.decoder(z), graph.x)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(z))
        return {"loss": loss, "assignment": log_q.detach().exp()}
