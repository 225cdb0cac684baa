r"""SCGC: Self-Supervised Contrastive Graph Clustering (Kulatilleke et al., arXiv 2204.12656).

A plain MLP embeds node attributes. The graph enters only through a contrastive loss that pulls
each node towards its neighbourhood of *r* hops, weighted by powers of the normalised adjacency,
while self-training sharpens the soft assignment to *k* centroids:

.. math:: \mathcal{L} = \beta\, \mathrm{KL}(P \| Q) + \alpha\, \mathcal{L}_{NC}(Z, \Gamma)
    \;(+\; \mathcal{L}_{rec})

SCGC has :math:`\Gamma = A^r` and keeps the autoencoder's reconstruction loss; SCGC* has
:math:`\Gamma = A + \dots + A^r` (influence augmented contrast) and no decoder.
"""

from typing import Literal

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch_geometric.data import Data

from common.adjacency import adjacency_power, cumulative_power
from common.errors import require
from common.losses import NeighborContrast, self_training_loss, student_t_log_assignment
from graphs.clustering.autoencoder import Autoencoder, adam, reconstruction_loss
from graphs.clustering.self_training import SelfTrainedClustering
from graphs.encoders import mlp


class SCGC(SelfTrainedClustering):
    r"""Clusters the nodes of an attributed graph.

    Args:
        in_dim: width of the node attributes.
        n_clusters: *k*.
        variant: ``"scgc"`` or ``"scgc*"``.
        alpha: weight of the contrast; 0 leaves plain self-training (DEC).
        beta: weight of self-training.
        order: *r*, hops of the neighbourhood.
        inverse_temperature: :math:`\tau` of the paper, which multiplies the similarity.

    The other arguments, batches and the order of training are those of
    :class:`~graphs.clustering.self_training.SelfTrainedClustering`.
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
        hidden_dims: tuple[int, ...] = (500, 500, 2000),
        embedding_dim: int = 10,
        autoencoder: str | None = None,
        pretraining_epochs: int = 30,
        pretraining_batch_size: int = 256,
        kmeans_restarts: int = 20,
        optimizer: OptimizerCallable = adam,
    ):
        super().__init__(
            in_dim,
            n_clusters,
            hidden_dims,
            embedding_dim,
            autoencoder,
            pretraining_epochs,
            pretraining_batch_size,
            kmeans_restarts,
            optimizer,
        )
        require(variant in ("scgc", "scgc*"), "variant", variant, "'scgc' or 'scgc*'")
        require(alpha >= 0, "alpha", alpha, "at least 0")
        require(beta >= 0, "beta", beta, "at least 0")
        require(order >= 1, "order", order, "at least 1")
        self.save_hyperparameters(ignore="optimizer")
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
