"""Where the cells of a view's feature map lie in the image, and what two views share.

Boxes are ``(n, 4)``: left, top, right and bottom in pixel borders of the original image, as the
batches of :class:`vision.data.Images` carry them with the flips. In a *signed* box a flipped view
has left and right swapped, so that cells counted from its left come out at the right places.
"""

import torch
from torch import Tensor

from common.errors import require, require_int


def signed_boxes(boxes: Tensor, flips: Tensor) -> Tensor:
    """``(n, 4)`` boxes with left and right swapped where ``flips (n,)``.

    Example:
        >>> signed_boxes(torch.tensor([[1., 2., 5., 6.]]), torch.tensor([True]))
        tensor([[5., 2., 1., 6.]])
    """
    _require_boxes("boxes", boxes)
    return torch.where(flips[:, None], boxes[:, [2, 1, 0, 3]], boxes)


def relative_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes from first to last pixel as fractions of the image, as PixPro measures them.

    Left is ``left / (width - 1)`` and right ``(right - 1) / (width - 1)``, likewise top and bottom.
    Flip with :func:`signed_boxes` afterwards.

    Args:
        boxes: ``(n, 4)``.
        sizes: ``(n, 2)`` height and width of the images, at least 2.

    Example:
        >>> relative_boxes(torch.tensor([[0., 0., 32., 16.]]), torch.tensor([[32, 32]]))[0, 3] * 31
        tensor(15.)
    """
    _require_boxes("boxes", boxes)
    last = (sizes - 1).flip(1).to(boxes)  # (n, 2) width, height
    require(bool((last > 0).all()), "sizes", sizes.amin().item(), "at least 2 pixels")
    return torch.cat((boxes[:, :2] / last, (boxes[:, 2:] - 1) / last), dim=1)


def cell_centres(boxes: Tensor, height: int, width: int) -> Tensor:
    """``(n, height * width, 2)``: x and y of the centre of each cell, row by row.

    Args:
        boxes: ``(n, 4)``, signed boxes for flipped views.
        height: rows of the feature map.
        width: columns.

    Example:
        >>> cell_centres(torch.tensor([[0., 0., 4., 4.]]), 2, 2)[0].tolist()
        [[1.0, 1.0], [3.0, 1.0], [1.0, 3.0], [3.0, 3.0]]
    """
    _require_boxes("boxes", boxes)
    height, width = require_int("height", height, 1), require_int("width", width, 1)
    left, top, right, bottom = boxes.unsqueeze(2).unbind(1)  # (n, 1) each
    x = left + (right - left) * ((torch.arange(width).to(boxes) + 0.5) / width)  # (n, w)
    y = top + (bottom - top) * ((torch.arange(height).to(boxes) + 0.5) / height)  # (n, h)
    grid = (x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width))
    return torch.stack(grid, dim=-1).flatten(1, 2)


def cell_distances(first: Tensor, second: Tensor, height: int, width: int) -> Tensor:
    r"""Distances of the cells of two views, in diagonals of a cell.

    .. math:: d_{pq} = \|c_p - c'_q\| \,/\, \max(\mathrm{diag}, \mathrm{diag}')

    Args:
        first: ``(n, 4)`` signed boxes.
        second: ``(n, 4)`` signed boxes of the other views.
        height: rows of both feature maps.
        width: columns.

    Returns:
        ``(n, p, p)``, :math:`p` = height times width; [i, a, b] of cell a of the first view.

    Source:
        PixPro, Xie et al., CVPR 2021 (arXiv 2011.10043), with :func:`relative_boxes`.
    """
    a, b = cell_centres(first, height, width), cell_centres(second, height, width)
    cells = torch.tensor([width, height]).to(first)
    diagonals = [((box[:, 2:] - box[:, :2]) / cells).norm(dim=1) for box in (first, second)]
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist") / torch.maximum(
        *diagonals
    ).view(-1, 1, 1)


def overlap(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The part of the image that two views share.

    Args:
        first: ``(n, 4)`` boxes, not signed.
        second: ``(n, 4)``.

    Returns:
        ``(n, 4)`` boxes and ``(n,)`` whether there is such a part; where not, the box is empty.

    Example:
        >>> overlap(torch.tensor([[0., 0., 4., 4.]]), torch.tensor([[2., 1., 9., 9.]]))
        (tensor([[2., 1., 4., 4.]]), tensor([True]))
    """
    _require_boxes("first", first)
    _require_boxes("second", second)
    low = torch.maximum(first[:, :2], second[:, :2])
    high = torch.minimum(first[:, 2:], second[:, 2:])
    return torch.cat((low, torch.maximum(low, high)), dim=1), (high > low).all(dim=1)


def within(part: Tensor, boxes: Tensor, flips: Tensor) -> Tensor:
    """``(n, 4)``: a part of the image as fractions of a view, mirrored where the view is.

    Example:
        >>> part, box = torch.tensor([[2., 0., 4., 4.]]), torch.tensor([[0., 0., 4., 4.]])
        >>> within(part, box, torch.tensor([True]))
        tensor([[0.0000, 0.0000, 0.5000, 1.0000]])
    """
    _require_boxes("part", part)
    _require_boxes("boxes", boxes)
    extent = boxes[:, 2:] - boxes[:, :2]
    fractions = ((part.view(-1, 2, 2) - boxes[:, None, :2]) / extent[:, None]).flatten(1)
    mirrored = torch.stack(
        (1 - fractions[:, 2], fractions[:, 1], 1 - fractions[:, 0], fractions[:, 3]), dim=1
    )
    return torch.where(flips[:, None], mirrored, fractions)


def undo_views(maps: Tensor, fractions: Tensor, flips: Tensor) -> Tensor:
    """Feature maps of views, resampled over a part of the image and flipped back.

    Two views of an image resampled over what they share agree cell by cell in where they look.

    Args:
        maps: ``(n, d, h, w)``.
        fractions: ``(n, 4)`` the part as fractions of each view, from :func:`within`; must not be
            empty.
        flips: ``(n,)`` whether a view is flipped.

    Returns:
        ``(n, d, h, w)``, by bilinear RoIAlign.

    Source:
        SlotCon, Wen et al., NeurIPS 2022 (arXiv 2205.15288).
    """
    from torchvision.ops import roi_align

    require(maps.ndim == 4, "maps", tuple(maps.shape), "(n, d, h, w)")
    _require_boxes("fractions", fractions)
    n, _, height, width = maps.shape
    scale = torch.tensor([width, height, width, height]).to(maps)
    rows = torch.arange(n).to(maps)[:, None]
    regions = torch.cat((rows, fractions.to(maps) * scale), dim=1)
    aligned = roi_align(maps, regions, (height, width), aligned=True)
    return torch.where(flips[:, None, None, None], aligned.flip(-1), aligned)


def _require_boxes(name: str, boxes: Tensor) -> None:
    valid = boxes.ndim == 2 and boxes.shape[1] == 4 and boxes.is_floating_point()
    require(valid, name, f"{tuple(boxes.shape)} {boxes.dtype}", "(n, 4), floating point")
