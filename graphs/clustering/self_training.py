"""What SCGC and PamC share: an MLP encoder, trainable centroids, and deep embedded self-training.

The graph enters only through the contrast that a method adds; the encoder itself sees node
attributes alone. Training, as in the official code of both papers:

1. the encoder starts from a pre-trained :class:`~graphs.clustering.autoencoder.Autoencoder`;
2. k-means with 20 restarts on the embeddings of all nodes gives the centroids;
3. every epoch is one step on the whole graph; the target of self-training is refreshed in each.
"""

from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch_geometric.data import Data

from common.adjacency import row_normalized_adjacency
from common.errors import ArgumentError, require
from common.kmeans import KMeans
from common.losses import student_t_log_assignment
from common.training import Method, load_checkpoint
from graphs.clustering.autoencoder import Autoencoder
from graphs.data import AttributedGraph
from graphs.encoders import mlp


class SelfTrainedClustering(Method):
    """Encoder, centroids and their initialisation; a subclass adds ``contrast`` and the loss.

    Args:
        in_dim: width of the node attributes.
        n_clusters: *k*.
        hidden_dims: widths of the encoder's hidden layers.
        embedding_dim: width *d* of the embedding.
        autoencoder: checkpoint of an :class:`Autoencoder` to start from; without one,
            :meth:`before_fit` pre-trains it.
        pretraining_epochs: epochs of that pre-training; 0 starts from random weights.
        pretraining_batch_size: nodes a mini-batch of that pre-training.
        kmeans_restarts: restarts of the k-means that places the centroids.
        optimizer: from the parameters to an optimiser.

    Batches are whole graphs: ``x (n, in_dim)`` dense or sparse, ``edge_index (2, e)``, the same
    one at every step.
    """

    initialized: Tensor

    def __init__(
        self,
        in_dim: int,
        n_clusters: int,
        hidden_dims: tuple[int, ...],
        embedding_dim: int,
        autoencoder: str | None,
        pretraining_epochs: int,
        pretraining_batch_size: int,
        kmeans_restarts: int,
        optimizer: OptimizerCallable,
    ):
        super().__init__()
        require(in_dim >= 1, "in_dim", in_dim, "at least 1")
        require(n_clusters >= 2, "n_clusters", n_clusters, "at least 2")
        require(embedding_dim >= 1, "embedding_dim", embedding_dim, "at least 1")
        require(pretraining_epochs >= 0, "pretraining_epochs", pretraining_epochs, "at least 0")
        require(
            pretraining_batch_size >= 1,
            "pretraining_batch_size",
            pretraining_batch_size,
            "at least 1",
        )
        require(kmeans_restarts >= 1, "kmeans_restarts", kmeans_restarts, "at least 1")
        self.dims = (in_dim, *hidden_dims, embedding_dim)
        self.encoder = mlp(*self.dims)
        self.centroids = nn.Parameter(torch.zeros(n_clusters, embedding_dim))  # (k, d)
        self.register_buffer("initialized", torch.tensor(False))
        self.contrast: Any = None  # the objective over the graph, once a graph was seen
        self.pretrained = pretraining_epochs == 0
        self.make_optimizer = optimizer

    def encode(self, graph: Data) -> Tensor:
        """Attributes of all nodes to ``(n, d)`` embeddings."""
        if graph.x.shape[1] != self.dims[0]:
            raise ArgumentError(
                f"in_dim is {self.dims[0]}, but the graph has {graph.x.shape[1]} attributes a node"
            )
        return self.encoder(graph.x)

    def assign(self, graph: Data) -> Tensor:
        """Soft assignment of all nodes, ``(n, k)``, rows sum to 1."""
        return student_t_log_assignment(self.encode(graph), self.centroids).exp()

    def make_contrast(self, adjacency: Tensor) -> nn.Module:
        """The method's contrastive objective over the row-stochastic ``(n, n)`` adjacency."""
        raise NotImplementedError(f"{type(self).__name__} must define make_contrast(adjacency)")

    def start_from(self, autoencoder: Autoencoder) -> None:
        """Copies the pre-trained weights."""
        self.encoder.load_state_dict(autoencoder.encoder.state_dict())
        self.pretrained = True

    def before_fit(self, datamodule: AttributedGraph) -> None:  # type: ignore[override]
        """Loads the autoencoder's checkpoint, or pre-trains one on the nodes of ``datamodule``."""
        in_dim, *hidden_dims, embedding_dim = self.dims
        blank = Autoencoder(in_dim, tuple(hidden_dims), embedding_dim)
        if self.hparams.autoencoder is not None:
            state = load_checkpoint(self.hparams.autoencoder)["state_dict"]
            shapes = {name: tuple(value.shape) for name, value in state.items()}
            expected = {name: tuple(value.shape) for name, value in blank.state_dict().items()}
            if shapes != expected:
                raise ArgumentError(
                    "autoencoder must be the checkpoint of an Autoencoder with layers "
                    f"{self.dims}, got {self.hparams.autoencoder} with {shapes or 'no weights'}"
                )
            blank.load_state_dict(state)
        elif self.hparams.pretraining_epochs:
            datamodule.setup("fit")
            Trainer(
                max_epochs=self.hparams.pretraining_epochs,
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                limit_val_batches=0,
            ).fit(
                blank,
                datamodule.node_batches(self.hparams.pretraining_batch_size),
                datamodule.val_dataloader(),
            )
        else:
            return
        self.start_from(blank)

    def on_train_batch_start(self, graph: Data, batch_idx: int) -> None:
        if self.contrast is None:
            if graph.edge_index is None:
                raise ArgumentError(
                    f"{type(self).__name__} trains on whole graphs, got a batch without "
                    "edge_index; leave the data module's batch_size empty"
                )
            self.contrast = self.make_contrast(
                row_normalized_adjacency(graph.edge_index, graph.x.shape[0])
            )
        if not self.initialized:
            self.place_centroids(graph)

    @torch.no_grad()
    def place_centroids(self, graph: Data) -> None:
        """k-means on the embeddings of the pre-trained encoder."""
        if not self.pretrained:
            raise ArgumentError(
                f"{type(self).__name__} starts from a pre-trained autoencoder: call "
                "before_fit(datamodule) first, or set pretraining_epochs=0 for random weights"
            )
        kmeans = KMeans(len(self.centroids), n_init=self.hparams.kmeans_restarts)
        self.centroids.copy_(kmeans.fit(self.encode(graph)).centroids)
        self.initialized.fill_(True)

    def validation_step(self, graph: Data, batch_idx: int) -> dict[str, Tensor]:
        return {"assignment": self.assign(graph)}

    def test_step(self, graph: Data, batch_idx: int) -> dict[str, Tensor]:
        return {"assignment": self.assign(graph)}

    def predict_step(self, graph: Data, batch_idx: int) -> dict[str, Tensor]:
        return {"embedding": self.encode(graph), "assignment": self.assign(graph)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters())
