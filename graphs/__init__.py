"""Contrastive learning and clustering on graphs.

Names load on first use, so that ``import graphs`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphs.clustering.autoencoder import Autoencoder as Autoencoder
    from graphs.clustering.pamc import PamC as PamC
    from graphs.clustering.scgc import SCGC as SCGC
    from graphs.data.attributed import AttributedGraph as AttributedGraph

_HOMES = {
    "AttributedGraph": "graphs.data.attributed",
    "Autoencoder": "graphs.clustering.autoencoder",
    "PamC": "graphs.clustering.pamc",
    "SCGC": "graphs.clustering.scgc",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'graphs' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
