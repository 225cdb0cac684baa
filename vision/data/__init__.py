"""Images: their specifications, loaders, views and the LightningDataModule.

``SPECS`` is all that loads at once; the rest brings torch and loads on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vision.data.specs import SPECS

if TYPE_CHECKING:
    from vision.data.images import ImageBatch as ImageBatch
    from vision.data.images import Images as Images
    from vision.data.images import ViewBatch as ViewBatch
    from vision.data.loading import load_images as load_images
    from vision.data.views import VIEWS as VIEWS
    from vision.data.views import Crop as Crop
    from vision.data.views import MultiCrop as MultiCrop

_HOMES = {
    "Crop": "vision.data.views",
    "ImageBatch": "vision.data.images",
    "Images": "vision.data.images",
    "MultiCrop": "vision.data.views",
    "VIEWS": "vision.data.views",
    "ViewBatch": "vision.data.images",
    "load_images": "vision.data.loading",
}

__all__ = ["SPECS", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vision.data' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
