"""Attributed graphs: their specifications, loaders and the LightningDataModule.

``SPECS`` is all that loads at once; the rest brings torch and loads on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from graphs.data.specs import SPECS

if TYPE_CHECKING:
    from graphs.data.attributed import AttributedGraph as AttributedGraph
    from graphs.data.graph import attributed_graph as attributed_graph
    from graphs.data.loading import load_graph as load_graph

_HOMES = {
    "AttributedGraph": "graphs.data.attributed",
    "attributed_graph": "graphs.data.graph",
    "load_graph": "graphs.data.loading",
}

__all__ = ["SPECS", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'graphs.data' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
