"""A single attributed graph as a LightningDataModule."""

from collections.abc import Iterator
from math import ceil
from typing import Any

import torch
from lightning import LightningDataModule
from torch_geometric.data import Data

from common.adjacency import quiet_sparse
from common.errors import require_int
from graphs.data.graph import attributed_graph
from graphs.data.loading import load_graph

SPARSE_DENSITY = 0.1


class AttributedGraph(LightningDataModule):
    """One graph with node features, in full or in mini-batches of nodes.

    Args:
        dataset: a name in ``graphs.data.SPECS``.
        root: data root; default :func:`common.data.data_root`.
        n_neighbors: neighbours per node, see :func:`graphs.data.load_graph`.
        batch_size: None: every epoch is one batch, the whole graph. A number: every epoch goes
            through the nodes in random order, see :meth:`node_batches`.
        sparse: whether the whole graph's ``x`` is a sparse CSR tensor; default if less than a tenth
            of its entries are non-zero.

    Validation, test and prediction always give the whole graph, its nodes in order. After
    ``setup`` there are ``graph`` (the whole ``Data``), ``in_dim``, ``n_clusters``, ``checksum``.

    Example:
        >>> data = AttributedGraph("digits", batch_size=256)
        >>> data.setup("fit")
        >>> data.graph.edge_index.shape, data.in_dim, data.n_clusters
        (torch.Size([2, 7768]), 64, 10)
        >>> [len(batch.x) for batch in data.train_dataloader()]
        [256, 256, 256, 256, 256, 256, 256, 5]
    """

    graph: Data
    in_dim: int
    n_clusters: int
    checksum: str

    def __init__(
        self,
        dataset: str,
        root: str | None = None,
        n_neighbors: int | None = None,
        batch_size: int | None = None,
        sparse: bool | None = None,
    ):
        super().__init__()
        if batch_size is not None:
            batch_size = require_int("batch_size", batch_size, 1)
        self.save_hyperparameters(logger=False)

    @classmethod
    def from_arrays(
        cls,
        x: Any,
        edge_index: Any = None,
        y: Any = None,
        *,
        n_clusters: int | None = None,
        n_neighbors: int = 3,
        batch_size: int | None = None,
        sparse: bool | None = None,
        name: str = "custom",
    ) -> "AttributedGraph":
        """A user's own graph, from NumPy arrays, tensors or sparse features.

        Args:
            x: ``(n, d)`` finite features.
            edge_index: ``(2, e)`` node ids; default the ``n_neighbors`` nearest neighbours.
            y: ``(n,)`` integer labels, for scores; may be left out.
            n_clusters: default the number of classes in ``y``; needed if there is no ``y``.
            n_neighbors: of the graph that is made if there is no ``edge_index``.
            batch_size: as for the class.
            sparse: as for the class.
            name: how the graph is called.

        Raises:
            ArgumentError: names the argument that cannot be used.

        Example:
            >>> data = AttributedGraph.from_arrays(torch.rand(20, 5), n_clusters=3)
            >>> data.in_dim, data.n_clusters
            (5, 3)
        """
        made = cls(name, None, n_neighbors, batch_size, sparse)
        graph = attributed_graph(
            x, edge_index, y, n_clusters=n_clusters, n_neighbors=n_neighbors, name=name
        )
        made._adopt(graph)
        return made

    def setup(self, stage: str | None = None) -> None:
        if not hasattr(self, "graph"):
            source = (self.hparams[key] for key in ("dataset", "root", "n_neighbors"))
            self._adopt(load_graph(*source))

    def train_dataloader(self) -> "Batches":
        batch_size = self.hparams["batch_size"]
        return Batches(self.graph) if batch_size is None else self.node_batches(batch_size)

    def node_batches(self, batch_size: int) -> "Batches":
        """The nodes in random order, in batches ``Data(x=(b, d) dense, y=(b,))`` without edges.

        The last batch may be smaller.
        """
        return Batches(Data(x=self.graph.x.to_dense(), y=self.graph.y), batch_size)

    def val_dataloader(self) -> "Batches":
        return Batches(self.graph)

    def test_dataloader(self) -> "Batches":
        return Batches(self.graph)

    def predict_dataloader(self) -> "Batches":
        return Batches(self.graph)

    def _adopt(self, graph: Data) -> None:
        self.in_dim = graph.x.shape[1]
        self.n_clusters = graph.n_clusters
        self.checksum = graph.checksum
        sparse = self.hparams["sparse"]
        if sparse is None:
            sparse = int(graph.x.count_nonzero()) < SPARSE_DENSITY * graph.x.numel()
        if sparse:
            with quiet_sparse():
                graph.x = graph.x.to_sparse_csr()
        self.graph = graph


class Batches:
    """An epoch over a graph: the graph itself, not copied, or its nodes in random batches.

    Nothing is loaded or collated, so this is no ``DataLoader`` and starts no workers. It draws one
    random permutation an epoch for mini-batches, and no random number for the whole graph.
    """

    def __init__(self, graph: Data, batch_size: int | None = None):
        self.graph = graph
        self.batch_size = batch_size

    def __len__(self) -> int:
        return 1 if self.batch_size is None else ceil(len(self.graph.x) / self.batch_size)

    def __iter__(self) -> Iterator[Data]:
        if self.batch_size is None:
            yield self.graph
            return
        x, y = self.graph.x, self.graph.y
        for rows in torch.randperm(len(x)).split(self.batch_size):
            yield Data(x=x[rows], y=None if y is None else y[rows])
