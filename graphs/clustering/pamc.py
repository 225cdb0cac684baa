r"""PamC: Efficient block contrastive learning via parameter-free meta-node approximation
(Kulatilleke et al., arXiv 2209.14067).

Contrasting a graph's nodes needs all pairs as negatives. PamC adds the embeddings of each current
cluster up to a meta-node and contrasts those *k* sums instead; positives are computed on the
edges alone. In the clustering model of SCGC* this replaces the quadratic loss:

.. math:: \mathcal{L} = \beta\, \mathrm{KL}(P \| Q) + \alpha\, \mathcal{L}_{PamC}(Z, \Gamma, Q),
    \qquad \Gamma = A + \dots + A^r
"""

from typing import Any

from torch import Tensor
from torch_geometric.data import Data

from common.adjacency import cumulative_power
from common.losses import BlockContrast, self_training_loss, student_t_log_assignment
from graphs.clustering.self_training import SelfTrainedClustering


class PamC(SelfTrainedClustering):
    """Clusters the nodes of an attributed graph at a cost linear in its edges.

    Args:
        in_dim: width of the node attributes.
        n_clusters: *k*.

    The other arguments, the batches and the order of training are those of
    :class:`~graphs.clustering.self_training.SelfTrainedClustering`; the defaults of the loss are
    those of the official code for USPS.
    """

    def __init__(
        self,
        in_dim: int,
        n_clusters: int,
        alpha: float = 2.0,
        beta: float = 2.0,
        order: int = 4,
        inverse_temperature: float = 0.5,
        **kwargs: Any,
    ):
        super().__init__(in_dim, n_clusters, alpha, beta, order, inverse_temperature, **kwargs)

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
