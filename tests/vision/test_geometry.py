"""Geometry of views against loops over cells, and the checks of PixPro and SlotCon."""

import math

import pytest
import torch

from common.errors import ArgumentError
from vision.data import augment as A
from vision.data import geometry as G
from vision.data.views import Crop, MultiCrop

WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
YES, NO = torch.tensor([True]), torch.tensor([False])


def random_boxes(n: int, size: int = 64) -> torch.Tensor:
    corners = torch.randint(size, (n, 2, 2)).double().sort(dim=1).values
    corners[:, 1] += 1
    return corners.flatten(1)


def test_distances_by_loops():
    n, height, width = 3, 2, 3
    flips = [torch.tensor([True, False, True]), torch.tensor([False, False, True])]
    boxes = [random_boxes(n), random_boxes(n)]
    signed = [G.signed_boxes(box, flip) for box, flip in zip(boxes, flips, strict=True)]
    got = G.cell_distances(*signed, height, width)
    assert got.shape == (n, 6, 6)
    for i in range(n):
        cells, diagonals = [], []
        for box, flip in zip(boxes, flips, strict=True):
            left, top, right, bottom = box[i].tolist()
            w, h = (right - left) / width, (bottom - top) / height
            diagonals.append(math.hypot(w, h))
            columns = [width - 1 - c if flip[i] else c for c in range(width)]
            cells.append(
                [
                    (left + (c + 0.5) * w, top + (r + 0.5) * h)
                    for r in range(height)
                    for c in columns
                ]
            )
        for p, a in enumerate(cells[0]):
            for q, b in enumerate(cells[1]):
                expected = math.dist(a, b) / max(diagonals)
                assert got[i, p, q].item() == pytest.approx(expected, rel=1e-12)


def test_equal_boxes_have_positives_on_the_diagonal():
    distance = G.cell_distances(WHOLE, WHOLE, 2, 2)[0]
    assert torch.equal(distance < 0.7, torch.eye(4, dtype=torch.bool))
    assert distance[0, 1].item() == pytest.approx(0.70711, abs=1e-5)
    assert (distance < 0.71).sum(dim=1).tolist() == [3] * 4


def test_a_flipped_box_reverses_the_columns():
    flipped = G.signed_boxes(WHOLE, YES)
    assert flipped.tolist() == [[1, 0, 0, 1]]
    mask = G.cell_distances(WHOLE, flipped, 2, 2)[0] < 0.7
    assert torch.equal(mask, torch.eye(4, dtype=torch.bool)[[1, 0, 3, 2]])


def test_disjoint_views_share_nothing_and_masks_transpose():
    a, b = torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[3.0, 3, 4, 4]])
    assert not (G.cell_distances(a, b, 7, 7) < 0.7).any()
    part, shares = G.overlap(a, b)
    assert not shares.any()
    assert (part[:, 2:] >= part[:, :2]).all()
    first, second = random_boxes(5), random_boxes(5)
    there, back = G.cell_distances(first, second, 4, 4), G.cell_distances(second, first, 4, 4)
    torch.testing.assert_close(there, back.mT)
    assert ((there < 0.5) <= (there < 0.9)).all()


def test_boxes_as_pixpro_measures_them():
    box = torch.tensor([[3.0, 2.0, 13.0, 10.0]])  # left 3, 10 wide, top 2, 8 high
    got = G.relative_boxes(box, torch.tensor([[17, 21]]))
    assert got[0].tolist() == pytest.approx([3 / 20, 2 / 16, 12 / 20, 9 / 16])


def test_overlap_and_its_place_in_each_view():
    first, second = torch.tensor([[0.0, 0, 8, 8]]), torch.tensor([[4.0, 2, 12, 6]])
    part, shares = G.overlap(first, second)
    assert shares.tolist() == [True]
    assert part.tolist() == [[4, 2, 8, 6]]
    assert G.within(part, first, NO).tolist() == [[0.5, 0.25, 1.0, 0.75]]
    assert G.within(part, first, YES).tolist() == [[0.0, 0.25, 0.5, 0.75]]
    assert G.within(part, second, YES).tolist() == [[0.5, 0.0, 1.0, 1.0]]


def test_undoing_the_view_of_a_whole_image():
    maps = torch.rand(1, 5, 7, 7)
    torch.testing.assert_close(G.undo_views(maps, WHOLE, NO), maps)
    torch.testing.assert_close(G.undo_views(maps, WHOLE, YES), maps.flip(-1))


def test_two_views_of_one_image_agree_once_undone():
    """A linear ramp, so that every resampling is exact away from the borders."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    image = torch.stack((2 * x + y, x + 2 * y, x + y)).to(torch.uint8)[None]
    crop = Crop(32, scale=(0.4, 0.8))
    views = MultiCrop((crop,), mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
    n = 6
    drawn = [
        A.draw(crop, torch.tensor([[64, 64]] * n), torch.Generator().manual_seed(s)) for s in (0, 1)
    ]
    rows = torch.zeros(n, dtype=torch.long)
    boxes = [p.boxes.float() for p in drawn]
    part, shares = G.overlap(*boxes)
    assert shares.all()
    undone = [
        G.undo_views(A.augment(image, rows, crop, p, views), G.within(part, box, p.flips), p.flips)
        for p, box in zip(drawn, boxes, strict=True)
    ]
    inside = slice(4, -4)
    difference = (undone[0] - undone[1])[:, :, inside, inside].abs()
    assert difference.max() < 0.5  # of grey values; neighbouring pixels differ by up to 2
    centres = G.cell_centres(part, 32, 32).view(n, 32, 32, 2) - 0.5
    expected = 2 * centres[..., 0] + centres[..., 1]
    error = (undone[0][:, 0] - expected)[:, inside, inside].abs()
    assert error.max() < 0.5


def test_what_is_no_box_is_named():
    with pytest.raises(ArgumentError, match=r"boxes must be \(n, 4\), floating point, got"):
        G.cell_centres(torch.zeros(4), 2, 2)
    with pytest.raises(ArgumentError, match="height must be an integer of at least 1, got 0"):
        G.cell_centres(WHOLE, 0, 2)
    with pytest.raises(ArgumentError, match="sizes must be at least 2 pixels"):
        G.relative_boxes(WHOLE, torch.tensor([[1, 5]]))
