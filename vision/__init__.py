"""Contrastive learning and clustering of images.

Names load on first use, so that ``import vision`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision.data.images import Images as Images
    from vision.data.views import Crop as Crop
    from vision.data.views import MultiCrop as MultiCrop

_HOMES = {
    "Crop": "vision.data.views",
    "Images": "vision.data.images",
    "MultiCrop": "vision.data.views",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vision' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
