"""What SCGC and PamC share: an MLP encoder, trainable centroids, and deep embedded self-training.

The graph enters only through the contrast that a method adds; the encoder itself sees node
attributes alone. Training, as in the official code of both papers:

1. the encoder starts from a pre-trained :class:`~graphs.clustering.autoencoder.Autoencoder`;
2. k-means with 20 restarts on the embeddings of all nodes gives the centroids;
3. every epoch is one step on the whole graph; the target of self-training is refreshed in each.
"""

from math import inf
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch_geometric.data import Data

from common.adjacency import row_normalized_adjacency
from common.errors import ArgumentError, require, require_int
from common.kmeans import KMeans
from common.losses import student_t_log_assignment
from common.nn import mlp
from common.training import Method, adam, load_checkpoint
from graphs.clustering.autoencoder import Autoencoder
from graphs.data import AttributedGraph


class SelfTrainedClustering(Method):
    r"""Encoder, centroids and their initialisation; a subclass adds the contrast and the loss.

    Args:
        in_dim: width of the node attributes.
        n_clusters: *k*.
        alpha: weight of the contrast; 0 leaves plain self-training (DEC).
        beta: weight of self-training.
        order: *r*, hops of the neighbourhood.
        inverse_temperature: :math:`\tau` of the papers, which multiplies the similarity.
        hidden_dims: widths of the encoder's hidden layers.
        embedding_dim: width *d* of the embedding.
        autoencoder: checkpoint of an :class:`Autoencoder` to start from; without one,
            :meth:`before_fit` pre-trains it.
        pretraining_epochs: epochs of that pre-training; 0 starts from random weights.
        pretraining_batch_size: nodes a mini-batch of that pre-training.
        kmeans_restarts: restarts of the k-means that places the centroids.
        optimizer: from the parameters to an optimiser.

    Batches are whole graphs: ``x (n, in_dim)`` dense or sparse, ``edge_index (2, e)``, the same
    one at every step of a fit. In a distributed job every rank trains on the whole graph.
    """

    initialized: Tensor

    def __init__(
        self,
        in_dim: int,
        n_clusters: int,
        alpha: float,
        beta: float,
        order: int,
        inverse_temperature: float,
        hidden_dims: tuple[int, ...] = (500, 500, 2000),
        embedding_dim: int = 10,
        autoencoder: str | None = None,
        pretraining_epochs: int = 30,
        pretraining_batch_size: int = 256,
        kmeans_restarts: int = 20,
        optimizer: OptimizerCallable = adam,
    ):
        super().__init__()
        self.save_hyperparameters(ignore="optimizer")
        self._check_hyper_parameters()
        self.dims = (in_dim, *hidden_dims, embedding_dim)
        self.encoder = mlp(*self.dims)
        self.centroids = nn.Parameter(torch.zeros(n_clusters, embedding_dim))  # (k, d)
        self.register_buffer("initialized", torch.tensor(False))
        self.contrast: Any = None  # the objective over the graph of the current fit
        self.pretrained = pretraining_epochs == 0
        self.make_optimizer = optimizer

    def _check_hyper_parameters(self) -> None:
        for name, lowest in {
            "in_dim": 1,
            "n_clusters": 2,
            "order": 1,
            "embedding_dim": 1,
            "pretraining_epochs": 0,
            "pretraining_batch_size": 1,
            "kmeans_restarts": 1,
        }.items():
            require_int(name, self.hparams[name], lowest)
        for name in ("alpha", "beta"):
            require(0 <= self.hparams[name] < inf, name, self.hparams[name], "at least 0, finite")

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
        """Copies the pre-trained weights; the next fit places the centroids anew."""
        self.encoder.load_state_dict(autoencoder.encoder.state_dict())
        self.pretrained = True
        self.initialized.fill_(False)

    def before_fit(self, datamodule: AttributedGraph, **trainer_options: Any) -> None:  # type: ignore[override]
        """Loads the autoencoder's checkpoint, or pre-trains one on the nodes of ``datamodule``."""
        in_dim, *hidden_dims, embedding_dim = self.dims
        autoencoder = Autoencoder(in_dim, tuple(hidden_dims), embedding_dim)
        if self.hparams.autoencoder is not None:
            state = load_checkpoint(self.hparams.autoencoder)["state_dict"]
            shapes = {name: tuple(value.shape) for name, value in state.items()}
            expected = {name: tuple(v.shape) for name, v in autoencoder.state_dict().items()}
            if shapes != expected:
                raise ArgumentError(
                    "autoencoder must be the checkpoint of an Autoencoder with layers "
                    f"{self.dims}, got {self.hparams.autoencoder} with {shapes or 'no weights'}"
                )
            autoencoder.load_state_dict(state)
        elif self.hparams.pretraining_epochs:
            datamodule.setup("fit")
            quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
            trainer = Trainer(
                max_epochs=self.hparams.pretraining_epochs,
                limit_val_batches=0,
                **{**quiet, **trainer_options},
            )
            batches = datamodule.node_batches(self.hparams.pretraining_batch_size)
            trainer.fit(autoencoder, batches, datamodule.val_dataloader())
        else:
            return
        self.start_from(autoencoder)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.contrast = None

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
        if torch.distributed.is_initialized():  # ranks may have drawn different restarts
            torch.distributed.broadcast(self.centroids, src=0)
        self.initialized.fill_(True)

    def validation_step(self, graph: Data, batch_idx: int) -> dict[str, Tensor]:
        return {"assignment": self.assign(graph)}

    def test_step(self, graph: Data, batch_idx: int) -> dict[str, Tensor]:
        return {"assignment": self.assign(graph)}

    def predict_step(self, graph: Data, batch_idx: int) -> dict[str, Tensor]:
        return {"embedding": self.encode(graph), "assignment": self.assign(graph)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters())
