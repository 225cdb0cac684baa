"""Views of one image at a time, by torchvision: the reference of :mod:`vision.data.augment`."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from vision.data.views import Crop, MultiCrop


class View(NamedTuple):
    """One view ``(3, s, s)``, its box ``(4,)`` and whether it is flipped."""

    image: Tensor
    box: Tensor
    flip: Tensor
    vertical_flip: Tensor


class PerImage:
    """Makes one kind of view of an image with ``torchvision.transforms.v2``.

    Draws from torch's default generator, so that each worker of a DataLoader has its own numbers.

    Args:
        crop: the kind of view.
        views: for mean and standard deviation.

    Example:
        >>> make = PerImage(Crop(16), MultiCrop((Crop(16),)))
        >>> view = make(torch.zeros(3, 32, 32, dtype=torch.uint8))
        >>> view.image.shape, view.box.shape
        (torch.Size([3, 16, 16]), torch.Size([4]))
    """

    def __init__(self, crop: Crop, views: MultiCrop):
        self.size = [crop.size, crop.size]
        self.interpolation = InterpolationMode(crop.interpolation)
        self.crop = v2.RandomResizedCrop(crop.size, crop.scale, crop.ratio)
        self.flip, self.vertical_flip = crop.flip, crop.vertical_flip
        apply = v2.RandomApply
        blur = v2.GaussianBlur(2 * crop.radius + 1, crop.sigma)
        self.rest = v2.Compose(
            [
                apply([v2.ColorJitter(*crop.jitter)], crop.jitter_probability),
                v2.RandomGrayscale(crop.grey),
                apply([blur], crop.blur),
                v2.RandomSolarize(crop.threshold, crop.solarise),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(views.mean, views.std),
            ]
        )

    def __call__(self, image: Tensor) -> View:
        """A view of ``(3, h, w)`` uint8."""
        at = self.crop.make_params([image])
        view = v2.functional.resized_crop(
            image, **at, size=self.size, interpolation=self.interpolation, antialias=True
        )
        flip, vertical_flip = torch.rand(()) < self.flip, torch.rand(()) < self.vertical_flip
        if flip:
            view = v2.functional.horizontal_flip(view)
        if vertical_flip:
            view = v2.functional.vertical_flip(view)
        left, top = at["left"], at["top"]
        box = torch.tensor([left, top, left + at["width"], top + at["height"]])
        return View(self.rest(view), box.float(), flip, vertical_flip)
