"""Views of a whole batch at once, on any device, with parameters of their own for each image.

The parameters are drawn on the CPU (:func:`draw`), a few numbers an image; the images are changed
where they are (:func:`augment`). Image for image this is what torchvision makes of the same
parameters, and their distribution is that of torchvision's transforms.

Small images, and all images on an accelerator, are resized and blurred by matrix products: a crop,
its antialiased resize and its flips are one matrix for the rows and one for the columns of each
image, a blur with its reflected border is another pair. For large images on the CPU, where these
matrices are mostly zeros, each crop is one call of PyTorch's resize and a blur adds shifted images.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import require
from vision.data.views import Crop, Interpolation, MultiCrop

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
ATTEMPTS = 10
DENSE_PIXELS = 64 * 64
CHUNK = 1 << 19
LUMA = (0.2989, 0.587, 0.114)


class Parameters(NamedTuple):
    """What :func:`draw` decides for n views of one kind; all on the CPU.

    ``boxes (n, 4)``: left, top, right, bottom of the crop, pixel borders of the image; ``flips``,
    ``vertical_flips (n,)``; ``factors (n, 4)`` of brightness, contrast, saturation and hue, 1, 1, 1
    and 0 for no jitter; ``order (n, 4)`` in which these four come; ``jittered``, ``grey``,
    ``solarised (n,)``; ``sigma (n,)`` of the blur, 0 for none.
    """

    boxes: Tensor
    flips: Tensor
    vertical_flips: Tensor
    factors: Tensor
    order: Tensor
    jittered: Tensor
    grey: Tensor
    sigma: Tensor
    solarised: Tensor


def draw_views(views: MultiCrop, sizes: Tensor, generator: torch.Generator) -> list[Parameters]:
    """Parameters of all views of some images.

    Args:
        views: what the views are.
        sizes: ``(n, 2)`` height and width of each image.
        generator: on the CPU.

    Returns:
        For each crop of ``views`` the parameters of its ``count * n`` views, view by view.
    """
    drawn: list[Parameters] = []
    first: Tensor | None = None
    for crop in views.crops:
        if not views.min_overlap:
            drawn.append(draw(crop, sizes.repeat(crop.count, 1), generator))
            continue
        parts: list[Parameters] = []
        for _ in range(crop.count):
            parts.append(draw(crop, sizes, generator, first, views.min_overlap))
            first = parts[0].boxes if first is None else first
        drawn.append(Parameters(*map(torch.cat, zip(*parts, strict=True))))
    return drawn


def draw(
    crop: Crop,
    sizes: Tensor,
    generator: torch.Generator,
    partner: Tensor | None = None,
    min_overlap: float = 0.0,
) -> Parameters:
    """Parameters of one view of each of n images.

    Args:
        crop: the kind of view.
        sizes: ``(n, 2)`` height and width of each image.
        generator: on the CPU.
        partner: ``(n, 4)`` boxes that the crop should overlap.
        min_overlap: by this fraction of the area asked of the crop.

    Example:
        >>> crop = Crop(16, scale=(0.25, 0.25), ratio=(1, 1))
        >>> drawn = draw(crop, torch.full((3, 2), 32), torch.Generator().manual_seed(0))
        >>> (drawn.boxes[:, 2:] - drawn.boxes[:, :2]).tolist()
        [[16, 16], [16, 16], [16, 16]]
    """
    n = len(sizes)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        unit = torch.rand(*shape, dtype=torch.float64, generator=generator)
        return unit * (high - low) + low

    def chosen(probability: float) -> Tensor:
        return uniform(0, 1, n) < probability

    boxes = _draw_boxes(crop, sizes, uniform, None, 0.0)
    if partner is not None and min_overlap > 0:
        boxes = _draw_boxes(crop, sizes, uniform, partner, min_overlap, otherwise=boxes)
    jittered = chosen(crop.jitter_probability if any(crop.jitter) else 0.0)
    lowest = [max(0.0, 1 - s) for s in crop.jitter[:HUE]] + [-crop.jitter[HUE]]
    highest = [1 + s for s in crop.jitter[:HUE]] + [crop.jitter[HUE]]
    drawn = [uniform(a, b, n) for a, b in zip(lowest, highest, strict=True)]
    identity = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    factors = torch.where(jittered[:, None], torch.stack(drawn, dim=1), identity)
    sigma = torch.where(chosen(crop.blur), uniform(*crop.sigma, n), 0.0)
    return Parameters(
        boxes=boxes,
        flips=chosen(crop.flip),
        vertical_flips=chosen(crop.vertical_flip),
        factors=factors.float(),
        order=uniform(0, 1, n, 4).argsort(dim=1),
        jittered=jittered,
        grey=chosen(crop.grey),
        sigma=sigma.float(),
        solarised=chosen(crop.solarise),
    )


def _draw_boxes(
    crop: Crop,
    sizes: Tensor,
    uniform: Callable[..., Tensor],
    partner: Tensor | None,
    min_overlap: float,
    otherwise: Tensor | None = None,
) -> Tensor:
    """The first of ``ATTEMPTS`` random boxes that fits, for each image.

    If none fits, ``otherwise``, by default the largest centred box whose aspect is in the range.
    """
    height, width = sizes.T.double()  # (n,) each
    n = len(sizes)
    area = uniform(*crop.scale, ATTEMPTS, n) * (height * width)  # (a, n)
    low, high = torch.tensor(crop.ratio, dtype=torch.float64).log().tolist()
    aspect = uniform(low, high, ATTEMPTS, n).exp()
    w, h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    left = (uniform(0, 1, ATTEMPTS, n) * (width - w + 1)).floor()
    top = (uniform(0, 1, ATTEMPTS, n) * (height - h + 1)).floor()
    boxes = torch.stack((left, top, left + w, top + h), dim=-1)  # (a, n, 4)
    if partner is not None:
        low_corner = torch.maximum(boxes[..., :2], partner[:, :2])
        high_corner = torch.minimum(boxes[..., 2:], partner[:, 2:])
        shared = (high_corner - low_corner).clamp(min=0).prod(dim=-1)
        fits &= shared >= min_overlap * area
    first = fits.to(torch.uint8).argmax(dim=0)  # (n,)
    boxes = boxes[first, torch.arange(n)].long()
    if otherwise is None:
        narrow, wide = crop.ratio
        w = torch.minimum(width, (height * wide).round())
        h = torch.minimum(height, (width / narrow).round())
        left, top = (width - w).div(2).floor(), (height - h).div(2).floor()
        otherwise = torch.stack((left, top, left + w, top + h), dim=-1).long()
    return torch.where(fits.any(dim=0)[:, None], boxes, otherwise)


@torch.no_grad()
def augment(
    images: Tensor, rows: Tensor, crop: Crop, parameters: Parameters, views: MultiCrop
) -> Tensor:
    """Views of images, normalised.

    Args:
        images: ``(m, 3, h, w)`` uint8, on any device.
        rows: ``(n,)`` which image each view is of, on the CPU.
        crop: the kind of view.
        parameters: of the n views.
        views: for mean and standard deviation.

    Returns:
        ``(n, 3, size, size)`` float32 on the device of ``images``.
    """
    _require_images(images)
    n, size = len(rows), crop.size
    out = images.new_empty((n, 3, size, size), dtype=torch.float32)
    pixels = max(size * size, images.shape[2] * images.shape[3])
    for part, hue_at in _chunks(crop, parameters, pixels, images.device):
        taken = Parameters(*(values[part] for values in parameters))
        x = crop_and_resize(images, rows[part], taken, size, crop.interpolation)
        x = change_colours_(x, crop, taken, hue_at)
        out[part.to(images.device)] = normalise_(x, views.mean, views.std)
    return out


@torch.no_grad()
def colour(images: Tensor, crop: Crop, parameters: Parameters, views: MultiCrop) -> Tensor:
    """Views of images that are cropped, resized and flipped already, see :func:`augment`.

    Args:
        images: ``(n, 3, size, size)`` uint8.
    """
    _require_images(images)
    out = torch.empty_like(images, dtype=torch.float32)
    for part, hue_at in _chunks(crop, parameters, crop.size**2, images.device):
        taken = Parameters(*(values[part] for values in parameters))
        on_device = part.to(images.device)
        x = images[on_device].float().div_(255)
        x = change_colours_(x, crop, taken, hue_at)
        out[on_device] = normalise_(x, views.mean, views.std)
    return out


def _require_images(images: Tensor) -> None:
    valid = images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == 3
    found = f"{tuple(images.shape)} {images.dtype}"
    require(valid, "images", found, "(n, 3, h, w) torch.uint8")


def _chunks(
    crop: Crop, parameters: Parameters, pixels: int, device: torch.device
) -> Iterator[tuple[Tensor, int | None]]:
    """Rows of views that can be handled together, with the place of the hue among their changes.

    On the CPU a chunk fits in the cache, where most of the time would go into memory otherwise.
    """
    hue_at = (parameters.order == HUE).int().argmax(dim=1)
    hue_at[~parameters.jittered] = -1
    limit = max(1, CHUNK // (3 * pixels)) if device.type == "cpu" else len(hue_at)
    for place in range(-1, 4):
        rows = (hue_at == place).nonzero().flatten()
        for part in rows.split(limit) if len(rows) else ():
            yield part, None if place < 0 else place


def crop_and_resize(
    images: Tensor,
    rows: Tensor,
    parameters: Parameters,
    size: int,
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """Crops of images, resized with antialiasing and flipped.

    Args:
        images: ``(m, 3, h, w)`` uint8.
        rows: ``(n,)`` which image each crop is of, on the CPU.
        parameters: boxes and flips of the n crops.
        size: height and width of the results.
        interpolation: ``"bilinear"`` or ``"bicubic"``.

    Returns:
        ``(n, 3, size, size)`` float32 from 0 to 1.
    """
    height, width = images.shape[2:]
    if images.device.type == "cpu" and max(height * width, size * size) > DENSE_PIXELS:
        cropped = crop_each(images, rows, parameters, size, interpolation)
        return cropped.float().div_(255)
    left, top, right, bottom = parameters.boxes.to(images.device).T.float()
    flips = parameters.flips.to(images.device)
    vertical = parameters.vertical_flips.to(images.device)
    across = _resize_matrix(left, right, flips, size, width, interpolation)  # (n, s, w)
    down = _resize_matrix(top, bottom, vertical, size, height, interpolation)  # (n, s, h)
    x = images[rows.to(images.device)].float().div_(255)  # (n, 3, h, w)
    x = torch.bmm(x.view(len(x), -1, width), across.mT).view(len(x), 3, height, size)
    return torch.matmul(down[:, None], x).clamp_(0, 1)


def crop_each(
    images: Tensor, rows: Tensor, parameters: Parameters, size: int, interpolation: Interpolation
) -> Tensor:
    """As :func:`crop_and_resize`, one call an image, rounded to uint8 as torchvision does."""
    out = images.new_empty((len(rows), 3, size, size))
    flips = torch.stack((parameters.vertical_flips, parameters.flips), dim=1)
    for i, (row, box, flip) in enumerate(
        zip(rows.tolist(), parameters.boxes.tolist(), flips.tolist(), strict=True)
    ):
        left, top, right, bottom = box
        crop = images[row : row + 1, :, top:bottom, left:right]
        crop = F.interpolate(crop, (size, size), mode=interpolation, antialias=True)
        out[i] = crop[0].flip([axis for axis, flipped in zip((1, 2), flip, strict=True) if flipped])
    return out


def _resize_matrix(
    start: Tensor,
    stop: Tensor,
    flips: Tensor,
    size: int,
    extent: int,
    interpolation: Interpolation,
) -> Tensor:
    """``(n, size, extent)``: weights of the pixels from ``start`` to ``stop`` in each new pixel."""
    length = (stop - start)[:, None]  # (n, 1)
    step = length / size
    centre = (torch.arange(size, device=start.device) + 0.5) * step  # (n, s)
    centre = torch.where(flips[:, None], length - centre, centre)
    pixel = torch.arange(extent, device=start.device) + 0.5 - start[:, None]  # (n, extent)
    distance = (pixel[:, None] - centre[:, :, None]) / step.clamp(min=1)[:, :, None]
    weights = _kernel(distance.abs_(), interpolation)
    weights *= ((pixel > 0) & (pixel < length))[:, None]
    return weights / weights.sum(dim=2, keepdim=True)


def _kernel(distance: Tensor, interpolation: Interpolation) -> Tensor:
    """The triangle, or Keys' cubic with a = -0.5 as antialiased resizing has it."""
    if interpolation == "bilinear":
        return (1 - distance).clamp_(min=0)
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def change_colours_(x: Tensor, crop: Crop, parameters: Parameters, hue_at: int | None) -> Tensor:
    """Jitter, grey, blur and solarise ``(n, 3, s, s)`` from 0 to 1, in place.

    Args:
        hue_at: place of the hue in the ``order`` of every view; None if none is jittered.
    """
    if hue_at is not None:
        jitter_(x, parameters.factors.to(x.device), parameters.order.to(x.device), hue_at)
    if crop.grey:
        rows = parameters.grey.nonzero().flatten().to(x.device)
        x[rows] = greyscale(x[rows])
    if crop.blur:
        rows = parameters.sigma.nonzero().flatten()
        if len(rows):
            blurred = blur(x[rows.to(x.device)], parameters.sigma[rows], crop.radius)
            x[rows.to(x.device)] = blurred
    if crop.solarise:
        rows = parameters.solarised.nonzero().flatten().to(x.device)
        x[rows] = solarise(x[rows], crop.threshold)
    return x


def jitter_(x: Tensor, factors: Tensor, order: Tensor, hue_at: int) -> Tensor:
    """Brightness, contrast, saturation and hue of ``(n, 3, h, w)``, in place.

    The first three are all ``clamp(a x + b luma(x) + c mean(luma(x)))``, so that the images of a
    batch can each be at another of them.

    Args:
        factors: ``(n, 4)``, see :class:`Parameters`.
        order: ``(n, 4)``.
        hue_at: where the hue is in every row of ``order``.
    """
    for place in range(4):
        if place == hue_at:
            hue_(x, factors[:, HUE])
            continue
        change = order[:, place]  # (n,)
        factor = factors.gather(1, change[:, None])[:, :, None, None]  # (n, 1, 1, 1)
        rest = 1 - factor
        of_mean = rest * (change == CONTRAST)[:, None, None, None]
        of_luma = rest * (change == SATURATION)[:, None, None, None]
        grey = luma(x)  # (n, 1, h, w)
        of_mean *= grey.mean(dim=(2, 3), keepdim=True)
        x.mul_(factor).add_(grey.mul_(of_luma).add_(of_mean)).clamp_(0, 1)
    return x


def luma(x: Tensor) -> Tensor:
    """``(n, 1, h, w)`` brightness of ``(n, 3, h, w)``."""
    red, green, blue = x.unbind(dim=1)
    grey = (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    return grey.unsqueeze(1)


def greyscale(x: Tensor) -> Tensor:
    """``(n, 3, h, w)`` of which all channels are the brightness."""
    return luma(x).expand_as(x)


def hue_(x: Tensor, shift: Tensor) -> Tensor:
    r"""Turns the hue of ``(n, 3, h, w)`` by ``shift (n,)`` of the circle, in place.

    In HSV with value *v* and chroma *c*, a colour of hue :math:`h \in [0, 6)` has red
    :math:`v - c + c\,[\,|h - 3| - 1\,]_0^1`, green :math:`v - c + c\,[\,2 - |h - 2|\,]_0^1` and
    blue :math:`v - c + c\,[\,2 - |h - 4|\,]_0^1`.
    """
    red, green, blue = x.unbind(dim=1)
    value, least = torch.maximum(red, green), torch.minimum(red, green)
    torch.maximum(value, blue, out=value)
    torch.minimum(least, blue, out=least)
    chroma = value - least
    grey = chroma == 0
    h = torch.where(
        value == red,
        green - blue,
        torch.where(
            value == green,
            (blue - red).add_(chroma, alpha=2),
            (red - green).add_(chroma, alpha=4),
        ),
    )
    h.div_(chroma.masked_fill(grey, 1)).add_(6 * shift[:, None, None])
    h.sub_((h / 6).floor_().mul_(6))
    slope = x.new_tensor([1, -1, -1])[:, None, None]
    offset = x.new_tensor([-1, 2, 2])[:, None, None]
    corner = x.new_tensor([3, 2, 4])[:, None, None]
    torch.sub(h.unsqueeze(1), corner, out=x)
    x.abs_().mul_(slope).add_(offset).clamp_(0, 1)
    return x.mul_(chroma.unsqueeze(1)).add_(least.unsqueeze(1))


def blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur of ``(n, 3, s, s)`` with ``sigma (n,)`` of its own each, borders reflected.

    Args:
        sigma: on the CPU.
        radius: pixels to each side that the kernel reaches; less than s.
    """
    if x.device.type == "cpu" and x.shape[2] * x.shape[3] > DENSE_PIXELS:
        radius = min(radius, int((4 * sigma.max()).ceil()))
        weights = _gaussian(sigma, radius)
        return _add_shifted(_add_shifted(x, weights, 2), weights, 3)
    weights = _gaussian(sigma.to(x.device), radius)  # (n, r + 1)
    matrix = _reflected(weights, x.shape[2])  # (n, s, s)
    rows = torch.bmm(x.reshape(len(x), -1, x.shape[3]), matrix.mT).view(x.shape)
    return torch.matmul(matrix[:, None], rows)


def _gaussian(sigma: Tensor, radius: int) -> Tensor:
    """``(n, radius + 1)``: weight of the pixel itself and of one at each distance."""
    distance = torch.arange(radius + 1, device=sigma.device) / sigma[:, None]
    weights = distance.square_().mul_(-0.5).exp_()
    return weights / (2 * weights.sum(dim=1, keepdim=True) - 1)


def _reflected(weights: Tensor, size: int) -> Tensor:
    """``(n, size, size)``: weight of pixel j in pixel i, what lies outside reflected inside."""
    radius = weights.shape[1] - 1
    weights = F.pad(weights, (0, 2 * size - radius))  # (n, 2 size + 1)
    i = torch.arange(size, device=weights.device)
    straight = (i[:, None] - i).abs()
    before = torch.where(i > 0, i[:, None] + i, 2 * size)
    after = torch.where(i < size - 1, 2 * (size - 1) - i[:, None] - i, 2 * size)
    return weights[:, straight] + weights[:, before] + weights[:, after]


def _add_shifted(x: Tensor, weights: Tensor, dim: int) -> Tensor:
    """Blur along one side: for each distance, the images shifted both ways, weighted."""
    radius, size = weights.shape[1] - 1, x.shape[dim]
    border = (0, 0, radius, radius) if dim == 2 else (radius, radius)
    padded = F.pad(x, border if dim == 2 else (*border, 0, 0), mode="reflect")
    weights = weights[:, :, None, None, None]
    out = x * weights[:, 0]
    for k in range(1, radius + 1):
        both = padded.narrow(dim, radius - k, size) + padded.narrow(dim, radius + k, size)
        out.add_(both.mul_(weights[:, k]))
    return out


def solarise(x: Tensor, threshold: int) -> Tensor:
    """Inverts values of ``(n, 3, h, w)`` that are at least ``threshold / 255``."""
    return torch.where(x >= threshold / 255, 1 - x, x)


def normalise_(
    x: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Tensor:
    """``(x - mean) / std`` of each channel, in place."""
    return x.sub_(x.new_tensor(mean)[:, None, None]).div_(x.new_tensor(std)[:, None, None])
