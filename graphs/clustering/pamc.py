r"""PamC: Efficient block contrastive learning via parameter-free meta-node approximation
(Kulatilleke et al., arXiv 2209.14067).

Contrasting a graph's nodes needs all pairs as negatives. PamC adds the embeddings of each current
cluster up to a meta-node and contrasts those *k* sums instead; positives are computed on the
edges alone. In the clustering model of SCGC* this replaces the quadratic loss:

.. math:: \mathcal{L} = \beta\, \mathrm{KL}(P \| Q) + \alpha\, \mathcal{L}_{PamC}(Z, \Gamma, Q),
    \qquad \Gamma = A + \dots + A^r
"""

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch_geometric.data import Data

from common.adjacency import cumulative_power
from common.errors import require
from common.losses import BlockContrast, self_training_loss, student_t_log_assignment
from graphs.clustering.autoencoder import adam
from graphs.clustering.self_training import SelfTrainedClustering


class PamC(SelfTrainedClustering):
    r"""Clusters the nodes of an attributed graph at a cost linear in its edges.

    Args:
        in_dim: width of the node attributes.
        n_clusters: *k*.
        alpha: weight of the contrast.
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
        alpha: float = 2.0,
        beta: float = 2.0,
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
        require(alpha >= 0, "alpha", alpha, "at least 0")
        require(beta >= 0, "beta", beta, "at least 0")
        require(order >= 1, "order", order, "at least 1")
        self.save_hyperparameters(ignore="optimizer")

    def make_contrast(self, adjacency: Tensor) -> BlockContrast:
        weights = cumulative_power(adjacency, self.hparams.order)
        return BlockContrast(weights, self.hparams.n_clusters, self.hparams.inverse_temperature)

    def training_step(self, graph: Data, batch_idx: int) -> dict[str, Tensor]:
        z = self.encode(graph)  # (n, d)
        log_q = student_t_log_assignment(z, self.centroids)  # (n, k)
        loss = self.hparams.beta * self_training_loss(log_q)
        if self.hparams.alpha:
            loss = loss + self.hparams.alpha * self.contrast(z, log_q.argmax(dim=1))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(z))
        return {"loss": loss, "assignment": log_q.detach().exp()}
