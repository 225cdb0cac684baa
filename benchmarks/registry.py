"""Every method, by the slug it has everywhere. Nothing heavy is imported before it is asked for."""

from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

DOMAINS = ("graphs", "vision")


@dataclass(frozen=True)
class Method:
    """A published method.

    Args:
        slug: its name in commands, recipes, tables and results.
        class_path: where the LightningModule is imported from.
        domain: the package it belongs to.
        data_class_path: the LightningDataModule it trains on; takes ``dataset=NAME``.
        tables: the tables that ``clustrast reproduce`` knows of it.
        datasets: those with a recipe.
    """

    slug: str
    class_path: str
    domain: str
    title: str
    venue: str
    arxiv: str
    data_class_path: str
    tables: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()

    @cached_property
    def cls(self) -> Any:
        return load(self.class_path)

    @cached_property
    def data_cls(self) -> Any:
        return load(self.data_class_path)


def load(path: str) -> Any:
    """The object at a dotted import path."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


GRAPH_CLUSTERING = ("digits", "acm", "dblp", "citeseer", "usps", "hhar", "reuters")

METHODS = (
    Method(
        slug="scgc",
        class_path="graphs.SCGC",
        domain="graphs",
        title="SCGC: Self-Supervised Contrastive Graph Clustering",
        venue="Neurocomputing 2025",
        arxiv="2204.12656",
        data_class_path="graphs.AttributedGraph",
        tables=("scgc", "pamc"),
        datasets=GRAPH_CLUSTERING,
    ),
    Method(
        slug="pamc",
        class_path="graphs.PamC",
        domain="graphs",
        title="Efficient block contrastive learning via parameter-free meta-node approximation",
        venue="preprint 2022",
        arxiv="2209.14067",
        data_class_path="graphs.AttributedGraph",
        tables=("pamc", "scgc"),
        datasets=GRAPH_CLUSTERING,
    ),
)
