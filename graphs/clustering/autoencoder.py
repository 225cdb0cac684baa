"""The autoencoder that deep graph clustering starts from (SDCN, Bo et al., WWW 2020).

A plain MLP pair, d-500-500-2000-10 and back, trained end to end to reproduce the node attributes;
the graph is not seen. No noise, no layer-wise stage, no labels.
"""

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch_geometric.data import Data

from common.nn import mlp
from common.training import Method, adam


class Autoencoder(Method):
    """Embeds node attributes by reconstructing them.

    Args:
        in_dim: width of the attributes.
        hidden_dims: widths of the encoder's hidden layers; the decoder mirrors them.
        embedding_dim: width *d* of the embedding.
        optimizer: from the parameters to an optimiser.

    Batches are :class:`~torch_geometric.data.Data` with ``x``, ``(n, in_dim)``, dense or sparse.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dims: tuple[int, ...] = (500, 500, 2000),
        embedding_dim: int = 10,
        optimizer: OptimizerCallable = adam,
    ):
        super().__init__()
        self.save_hyperparameters(ignore="optimizer")
        self.encoder = mlp(in_dim, *hidden_dims, embedding_dim)
        self.decoder = mlp(embedding_dim, *reversed(hidden_dims), in_dim)
        self.make_optimizer = optimizer

    def encode(self, batch: Data) -> Tensor:
        """``(n, in_dim)`` attributes to ``(n, d)`` embeddings."""
        return self.encoder(batch.x)

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        z = self.encode(batch)  # (n, d)
        loss = reconstruction_loss(self.decoder(z), batch.x)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(z))
        return loss

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        loss = reconstruction_loss(self.decoder(self.encode(batch)), batch.x)
        self.log("val/loss", loss, prog_bar=True, batch_size=batch.x.shape[0])

    def test_step(self, batch: Data, batch_idx: int) -> None:
        loss = reconstruction_loss(self.decoder(self.encode(batch)), batch.x)
        self.log("test/loss", loss, batch_size=batch.x.shape[0])

    def predict_step(self, batch: Data, batch_idx: int) -> dict[str, Tensor]:
        return {"embedding": self.encode(batch)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters())


def reconstruction_loss(reconstruction: Tensor, x: Tensor) -> Tensor:
    """Mean squared error over all ``(n, in_dim)`` entries; ``x`` may be sparse."""
    return F.mse_loss(reconstruction, x.to_dense())
