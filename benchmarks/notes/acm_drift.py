"""Where SCGC* loses accuracy on ACM after its peak: the figures in the notes of the table ``scgc``.

    python benchmarks/notes/acm_drift.py AUTOENCODER.ckpt

The checkpoint is the autoencoder of a seed, from the ``checkpoints`` of the run folder of
``clustrast reproduce scgc --scale paper --datasets acm``; the record of its cell has the key that
names the file. Prints, at some epochs, accuracy, the contrast, the share of edges within a cluster,
and the accuracy of isolated nodes, of those with one to five neighbours, and of the others.
"""

import sys
from typing import Any

import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback

from common.metrics import contingency_table, match_clusters
from graphs import SCGC, AttributedGraph

EPOCHS = (0, 16, 40, 60, 80, 100, 160, 199)


class Drift(Callback):
    """Prints a line at each of ``EPOCHS``, of the assignment before that epoch's step."""

    def on_train_batch_end(
        self, trainer: Trainer, model: Any, outputs: Any, graph: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch not in EPOCHS:
            return
        clusters = outputs["assignment"].argmax(dim=1)
        names = match_clusters(contingency_table(clusters, graph.y, 3, 3))
        right = (names[clusters] == graph.y).float()
        source, target = graph.edge_index
        degree = source.bincount(minlength=len(graph.y))
        groups = (degree == 0, (degree > 0) & (degree <= 5), degree > 5)
        with torch.no_grad():
            contrast = float(model.contrast(model.encode(graph)))
        within = (clusters[source] == clusters[target]).float().mean()
        parts = "  ".join(f"{right[group].mean():.3f}" for group in groups)
        print(
            f"epoch {trainer.current_epoch:3}  acc {right.mean():.3f}  contrast {contrast:.3f}  "
            f"edges within {within:.3f}  acc by degree {parts}"
        )


def main(autoencoder: str) -> None:
    seed_everything(0)
    data = AttributedGraph("acm")
    data.setup("fit")
    model = SCGC(
        data.in_dim, 3, alpha=1.0, order=1, inverse_temperature=0.25, autoencoder=autoencoder
    )
    model.before_fit(data)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(max_epochs=200, limit_val_batches=0, callbacks=[Drift()], **quiet).fit(model, data)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
