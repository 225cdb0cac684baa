"""What the views of an image are: how each is cropped and how its colours are changed.

A :class:`Crop` describes one kind of view, a :class:`MultiCrop` all views of an image. They are
plain values, so that a recipe can write them out; :data:`VIEWS` has those of the papers by name.
Two paths make them, with the same distribution: :mod:`vision.data.augment` in batches and on any
device, :class:`vision.data.per_image.PerImage` one image at a time by torchvision.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal

from common.errors import ArgumentError, require, require_int

Interpolation = Literal["bilinear", "bicubic"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SWAV_STD = (0.228, 0.224, 0.225)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Crop:
    """One kind of view, made in this order: crop and resize, flip, jitter, grey, blur, solarise.

    A crop covers a uniform fraction ``scale`` of the image's area with a log-uniform aspect
    ``ratio``, whatever fits, and is resized with antialiasing. Jitter changes brightness, contrast
    and saturation by factors from :math:`[1 - s, 1 + s]` and shifts the hue by a fraction from
    :math:`[-s, s]` of the circle, in random order. The blur's kernel ends at four sigmas.

    Args:
        size: height and width of the view, in pixels.
        scale: smallest and largest area of the crop, as fractions of the image's.
        ratio: smallest and largest width over height of the crop.
        count: how many views of this kind.
        interpolation: ``"bilinear"`` or ``"bicubic"``.
        flip: probability of a horizontal flip.
        vertical_flip: probability of a vertical flip.
        jitter: strengths *s* of brightness, contrast, saturation and hue.
        jitter_probability: that they are changed at all.
        grey: probability of no colour.
        blur: probability of a Gaussian blur.
        sigma: smallest and largest standard deviation of the blur, in pixels of the view.
        solarise: probability that values of at least ``threshold`` are inverted.
        threshold: of solarisation, from 0 to 255.

    Raises:
        ArgumentError: a value is out of its range; names it.

    Example:
        >>> Crop(32, scale=(0.2, 1), jitter=(0.4, 0.4, 0.4, 0.1), grey=0.2).radius
        8
        >>> Crop(32, scale=(0.5, 2))
        Traceback (most recent call last):
        common.errors.ArgumentError: scale must be 0 < low <= high <= 1, got (0.5, 2)
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    count: int = 1
    interpolation: Interpolation = "bilinear"
    flip: float = 0.5
    vertical_flip: float = 0.0
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_probability: float = 0.8
    grey: float = 0.0
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0
    threshold: int = 128

    def __post_init__(self) -> None:
        require_int("size", self.size, 2)
        require_int("count", self.count, 1)
        require_int("threshold", self.threshold, 0, 255)
        _require_range("scale", self.scale, 1.0)
        _require_range("ratio", self.ratio, math.inf)
        _require_range("sigma", self.sigma, 100.0)
        known = self.interpolation in ("bilinear", "bicubic")
        require(known, "interpolation", self.interpolation, "'bilinear' or 'bicubic'")
        strengths = _numbers("jitter", self.jitter, 4)
        valid = min(strengths) >= 0 and strengths[3] <= 0.5
        require(valid, "jitter", self.jitter, "4 strengths of at least 0, that of hue at most 0.5")
        for name in ("flip", "vertical_flip", "jitter_probability", "grey", "blur", "solarise"):
            value = getattr(self, name)
            probability = isinstance(value, Real) and 0 <= float(value) <= 1
            require(probability, name, value, "a probability from 0 to 1")

    @property
    def radius(self) -> int:
        """Pixels to each side that the blur reaches at most: four sigmas, inside the view."""
        return min(math.ceil(4 * self.sigma[1]), self.size - 1)


@dataclass(frozen=True)
class MultiCrop:
    """All views of an image.

    Args:
        crops: the kinds of views; the views come in this order.
        min_overlap: each later view is drawn up to 10 times until it shares this fraction of the
            area asked of it with the first view; if none does, it is drawn without this condition.
        mean: subtracted from each channel, of values from 0 to 1.
        std: divides each channel then.

    Raises:
        ArgumentError: a value is out of its range; names it.

    Example:
        >>> VIEWS["swav"].sizes
        (224, 224, 96, 96, 96, 96, 96, 96)
    """

    crops: tuple[Crop, ...]
    min_overlap: float = 0.0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        object.__setattr__(self, "crops", tuple(self.crops))
        named = bool(self.crops) and all(isinstance(crop, Crop) for crop in self.crops)
        require(named, "crops", self.crops, "at least one Crop")
        valid = isinstance(self.min_overlap, Real) and 0 <= self.min_overlap < 1
        require(valid, "min_overlap", self.min_overlap, "a fraction from 0 to below 1")
        _numbers("mean", self.mean, 3)
        require(min(_numbers("std", self.std, 3)) > 0, "std", self.std, "3 numbers above 0")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Pixels a side of each view."""
        return tuple(crop.size for crop in self.crops for _ in range(crop.count))


def _numbers(name: str, values: Any, count: int) -> tuple[float, ...]:
    """``values`` as finite floats, if they are that many."""
    numbers = tuple(values) if isinstance(values, (tuple, list)) else ()
    valid = len(numbers) == count and all(
        isinstance(value, Real) and math.isfinite(value) for value in numbers
    )
    require(valid, name, values, f"{count} finite numbers")
    return tuple(float(value) for value in numbers)


def _require_range(name: str, values: Any, highest: float) -> None:
    low, high = _numbers(name, values, 2)
    bound = "" if highest == math.inf else f" <= {highest:g}"
    require(0 < low <= high <= highest, name, values, f"0 < low <= high{bound}")


_SIMCLR = Crop(224, jitter=(0.8, 0.8, 0.8, 0.2), grey=0.2, blur=0.5, count=2)
_MOCO = replace(_SIMCLR, scale=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.1))
_BYOL = Crop(224, jitter=(0.4, 0.4, 0.2, 0.1), grey=0.2, blur=1.0)
_BYOL_2 = replace(_BYOL, blur=0.1, solarise=0.2)


def _pair(**changes: Any) -> tuple[Crop, Crop]:
    return replace(_BYOL, **changes), replace(_BYOL_2, **changes)


_SWAV = replace(_SIMCLR, scale=(0.14, 1.0))
_SWAV_SMALL = replace(_SWAV, size=96, scale=(0.05, 0.14), count=6)
_GROCO = _pair(scale=(0.14, 1.0), interpolation="bicubic")
_CIFAR = Crop(32, scale=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), grey=0.2, count=2)
_CIFAR_JITTER = replace(_CIFAR, jitter=(0.4, 0.4, 0.4, 0.4), jitter_probability=1.0)
_SWAV_32 = replace(_CIFAR, scale=(0.3, 1.0), jitter=(0.4, 0.4, 0.4, 0.1))


def _cifar(*crops: Crop) -> MultiCrop:
    return MultiCrop(crops, mean=CIFAR10_MEAN, std=CIFAR10_STD)


VIEWS: Mapping[str, MultiCrop] = {
    "simclr": MultiCrop((_SIMCLR,)),
    "moco": MultiCrop((replace(_MOCO, jitter=(0.4, 0.4, 0.4, 0.4), jitter_probability=1, blur=0),)),
    "moco_v2": MultiCrop((_MOCO,)),
    "interclr": MultiCrop((_MOCO,)),
    "byol": MultiCrop(_pair(interpolation="bicubic")),
    "swav": MultiCrop((_SWAV, _SWAV_SMALL), std=SWAV_STD),
    "swav_2x224": MultiCrop((replace(_SWAV, scale=(0.08, 1.0)),), std=SWAV_STD),
    "swav_2x224_4x96": MultiCrop((_SWAV, replace(_SWAV_SMALL, count=4)), std=SWAV_STD),
    "swav_2x160_4x96": MultiCrop(
        (replace(_SWAV, size=160), replace(_SWAV_SMALL, count=4)), std=SWAV_STD
    ),
    "pixpro": MultiCrop(_pair()),
    "slotcon": MultiCrop(_pair(interpolation="bicubic"), min_overlap=0.01),
    "cacr": MultiCrop(_pair(scale=(0.2, 1.0))),
    "groco": MultiCrop(_GROCO),
    "groco_multicrop": MultiCrop(
        (*_GROCO, replace(_GROCO[0], size=96, scale=(0.05, 0.14), blur=0.5, count=6))
    ),
    "cifar": _cifar(_CIFAR),
    "cifar_jitter": _cifar(_CIFAR_JITTER),
    "simclr_32": _cifar(replace(_CIFAR, scale=(0.08, 1.0), jitter=(0.4, 0.4, 0.4, 0.1))),
    "swav_32": _cifar(_SWAV_32, replace(_SWAV_32, size=16, scale=(0.1, 0.3))),
    "swav_2x32": _cifar(_SWAV_32),
    "pixpro_64": MultiCrop(_pair(size=64, scale=(0.2, 1.0))),
    "slotcon_64": MultiCrop(_pair(size=64, scale=(0.2, 1.0)), min_overlap=0.01),
}


def find_views(views: str | MultiCrop) -> MultiCrop:
    """``views`` itself, or those of that name in :data:`VIEWS`.

    Raises:
        ArgumentError: there are none of that name; lists those that there are.
    """
    if isinstance(views, MultiCrop):
        return views
    if not isinstance(views, str) or views not in VIEWS:
        raise ArgumentError(
            f"views must be a MultiCrop or one of {', '.join(VIEWS)}, got {views!r}"
        )
    return VIEWS[views]
