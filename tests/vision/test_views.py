"""Batched views against torchvision's, image by image and in distribution."""

from dataclasses import replace

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from scipy.stats import ks_2samp
from torchvision.transforms import InterpolationMode

from common.errors import ArgumentError
from vision.data import augment as A
from vision.data.per_image import PerImage
from vision.data.views import VIEWS, Crop, MultiCrop, find_views

RICH = Crop(
    24,
    scale=(0.1, 0.9),
    jitter=(0.8, 0.8, 0.8, 0.2),
    grey=0.2,
    blur=0.5,
    solarise=0.3,
    vertical_flip=0.3,
)


def photographs(n: int, height: int, width: int) -> torch.Tensor:
    coarse = torch.rand(n, 3, height // 4, width // 4)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return smooth.clamp(0, 1).mul(255).to(torch.uint8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_torchvision(image, crop: Crop, p: A.Parameters, i: int, views: MultiCrop) -> torch.Tensor:
    """The view that the i-th parameters ask for, by torchvision's functions in float64."""
    left, top, right, bottom = p.boxes[i].tolist()
    x = TF.resized_crop(
        image.double() / 255,
        top,
        left,
        bottom - top,
        right - left,
        [crop.size, crop.size],
        InterpolationMode(crop.interpolation),
        antialias=True,
    ).clamp(0, 1)
    if p.flips[i]:
        x = TF.horizontal_flip(x)
    if p.vertical_flips[i]:
        x = TF.vertical_flip(x)
    if p.jittered[i]:
        changes = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
        for which in p.order[i].tolist():
            factor = p.factors[i, which].item()
            x = changes[which](x.float() if which == A.HUE else x, factor).double()
    if p.grey[i]:
        x = TF.rgb_to_grayscale(x, 3)
    if p.sigma[i] > 0:
        x = TF.gaussian_blur(x, [2 * crop.radius + 1] * 2, [p.sigma[i].item()] * 2)
    if p.solarised[i]:
        x = TF.solarize(x, crop.threshold / 255)
    return TF.normalize(x, views.mean, views.std)


@pytest.mark.parametrize(
    ("crop", "height", "width", "tolerance"),
    [
        (RICH, 32, 32, 1e-5),
        (RICH, 40, 24, 1e-5),
        (replace(RICH, interpolation="bicubic"), 48, 48, 1e-5),
        (replace(RICH, size=12, scale=(0.5, 1.0)), 60, 48, 1e-5),
        (replace(RICH, size=72), 80, 96, 1 / 255),
        (replace(RICH, size=40, interpolation="bicubic"), 120, 100, 1 / 255),
    ],
    ids=["32", "not square", "bicubic", "down", "large", "large bicubic"],
)
def test_equal_parameters_give_torchvisions_images(crop, height, width, tolerance):
    # Large images are rounded after the resize, as torchvision rounds them; what is solarised or
    # amplified then may differ by more in a few pixels.
    n = 24
    views = MultiCrop((crop,), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    images = photographs(n, height, width)
    p = A.draw(crop, torch.tensor([[height, width]] * n), generator())
    got = A.augment(images, torch.arange(n), crop, p, views)
    assert got.shape == (n, 3, crop.size, crop.size)
    assert {*p.order[p.jittered].argmax(dim=1).tolist()} == {0, 1, 2, 3}
    expected = torch.stack([by_torchvision(images[i], crop, p, i, views) for i in range(n)])
    error = (got.double() - expected).abs()
    if tolerance < 1e-4:
        # a value within float32's rounding of the threshold may fall on either side of it
        assert (error > tolerance).double().mean() < 1e-4
    else:
        assert error.quantile(0.98) < 2.5 * tolerance
        assert error.mean() < tolerance


@pytest.mark.parametrize("size", [24, 72])
def test_views_that_are_cropped_already_get_the_same_colours(size):
    crop = replace(RICH, size=size, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0, vertical_flip=0)
    views = MultiCrop((crop,))
    images = photographs(6, size, size)
    p = A.draw(crop, torch.tensor([[size, size]] * 6), generator())
    whole = A.augment(images, torch.arange(6), crop, p, views)
    torch.testing.assert_close(A.colour(images, crop, p, views), whole, atol=1e-5, rtol=0)


def test_rows_say_which_image_a_view_is_of():
    crop = Crop(8, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0)
    views = MultiCrop((crop,), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 8, 8)
    rows = torch.tensor([2, 0, 1, 1])
    p = A.draw(crop, torch.tensor([[8, 8]] * 4), generator())
    got = A.augment(images, rows, crop, p, views)
    assert got.mean(dim=(1, 2, 3)).tolist() == pytest.approx([1, 0, 0.2, 0.2])


def test_dense_and_sparse_forms_agree(monkeypatch):
    crop = replace(RICH, size=40)
    images = photographs(8, 48, 40)
    p = A.draw(crop, torch.tensor([[48, 40]] * 8), generator())
    x = torch.rand(8, 3, 40, 40)
    sigma = torch.linspace(0.1, 2, 8)
    dense = A.crop_and_resize(images, torch.arange(8), p, 40), A.blur(x, sigma, crop.radius)
    monkeypatch.setattr(A, "DENSE_PIXELS", 0)
    sparse = A.crop_and_resize(images, torch.arange(8), p, 40), A.blur(x, sigma, crop.radius)
    torch.testing.assert_close(dense[0], sparse[0], atol=1.01 / 255, rtol=0)
    torch.testing.assert_close(dense[1], sparse[1], atol=1e-3, rtol=0)


def test_boxes_are_distributed_as_torchvisions():
    crop = Crop(16, scale=(0.08, 1.0))
    make = PerImage(crop, MultiCrop((crop,)))
    image = torch.zeros(3, 120, 160, dtype=torch.uint8)
    theirs = torch.stack(
        [
            torch.tensor([p["left"], p["top"], p["left"] + p["width"], p["top"] + p["height"]])
            for p in (make.crop.make_params([image]) for _ in range(3000))
        ]
    ).double()
    ours = A.draw(crop, torch.tensor([[120, 160]] * 3000), generator()).boxes.double()

    def measured(boxes):
        w, h = (boxes[:, 2:] - boxes[:, :2]).T
        return {
            "area": w * h,
            "aspect": w / h,
            "left": boxes[:, 0],
            "top": boxes[:, 1],
            "right": boxes[:, 2],
        }

    for name, values in measured(ours).items():
        assert ks_2samp(values, measured(theirs)[name]).pvalue > 1e-3, name
    wider = A.draw(Crop(16, scale=(0.2, 1.0)), torch.tensor([[120, 160]] * 3000), generator())
    assert ks_2samp(measured(wider.boxes.double())["area"], measured(theirs)["area"]).pvalue < 1e-6


def test_images_are_distributed_as_torchvisions():
    crop = replace(RICH, size=16, blur=0.5)
    views = MultiCrop((crop,))
    image = photographs(1, 32, 32)
    n = 600
    make = PerImage(crop, views)
    theirs = torch.stack([make(image[0]).image for _ in range(n)])
    p = A.draw(crop, torch.tensor([[32, 32]] * n), generator())
    ours = A.augment(image, torch.zeros(n, dtype=torch.long), crop, p, views)
    statistics = {
        "mean": lambda x: x.mean(dim=(1, 2, 3)),
        "std": lambda x: x.std(dim=(1, 2, 3)),
        "red less blue": lambda x: (x[:, 0] - x[:, 2]).mean(dim=(1, 2)),
        "slope": lambda x: x.diff(dim=3).abs().mean(dim=(1, 2, 3)),
        "corner": lambda x: x[:, 1, 0, 0],
    }
    for name, of in statistics.items():
        assert ks_2samp(of(ours), of(theirs)).pvalue > 1e-3, name
    histogram = [x.flatten().histc(20, -2.5, 2.8) / x.numel() for x in (ours, theirs)]
    torch.testing.assert_close(*histogram, atol=0.01, rtol=0)


def test_colours_are_drawn_as_the_crop_says():
    n = 4000
    p = A.draw(RICH, torch.tensor([[32, 32]] * n), generator())
    for values, probability in [
        (p.flips, 0.5),
        (p.vertical_flips, 0.3),
        (p.jittered, 0.8),
        (p.grey, 0.2),
        (p.sigma > 0, 0.5),
        (p.solarised, 0.3),
    ]:
        assert values.double().mean().item() == pytest.approx(probability, abs=0.03)
    drawn = p.factors[p.jittered]
    for column, (low, high) in enumerate([(0.2, 1.8)] * 3 + [(-0.2, 0.2)]):
        expected = torch.linspace(low, high, 4000)
        assert ks_2samp(drawn[:, column], expected).pvalue > 1e-3
    assert p.factors[~p.jittered].unique(dim=0).tolist() == [[1, 1, 1, 0]]
    assert len(p.order.unique(dim=0)) == 24
    assert ks_2samp(p.sigma[p.sigma > 0], torch.linspace(0.1, 2, 4000)).pvalue > 1e-3


def test_a_seed_decides_the_views_and_a_strength_may_pass_one():
    sizes = torch.tensor([[32, 32]] * 5)
    first, again = (A.draw(RICH, sizes, generator(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    strong = A.draw(replace(RICH, jitter=(1.5, 0, 0, 0)), torch.tensor([[8, 8]] * 900), generator())
    assert 0 <= strong.factors[:, 0].min() < 0.05


def test_nothing_fits_an_extreme_image():
    crop = Crop(8, scale=(1.0, 1.0))
    p = A.draw(crop, torch.tensor([[10, 100], [100, 10], [9, 10]]), generator())
    assert p.boxes.tolist() == [[43, 0, 56, 10], [0, 43, 10, 56], [0, 0, 10, 9]]


def test_later_views_overlap_the_first():
    views = MultiCrop((Crop(8, scale=(0.02, 0.05), count=3), Crop(8, scale=(0.02, 0.05))), 0.2)
    n = 400
    drawn = A.draw_views(views, torch.tensor([[64, 64]] * n), generator())
    boxes = torch.cat([p.boxes for p in drawn]).view(4, n, 4)
    free = A.draw_views(replace(views, min_overlap=0.0), torch.tensor([[64, 64]] * n), generator())
    for other, unbound in zip(
        boxes[1:], torch.cat([p.boxes for p in free]).view(4, n, 4)[1:], strict=True
    ):
        shares = [(shared(boxes[0], other) > 0), shared(boxes[0], unbound) > 0]
        assert shares[0].double().mean() > 2 * shares[1].double().mean()


def shared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    corner = torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])
    return corner.clamp(min=0).prod(dim=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 1}, "size must be an integer of at least 2, got 1"),
        ({"scale": (0.5, 0.2)}, r"scale must be 0 < low <= high <= 1, got \(0.5, 0.2\)"),
        ({"scale": (0.0, 1.0)}, "scale must be 0 < low"),
        ({"scale": (float("nan"), 1.0)}, "scale must be 2 finite numbers"),
        ({"scale": 0.5}, "scale must be 2 finite numbers, got 0.5"),
        ({"ratio": (-1, 2)}, "ratio must be 0 < low <= high"),
        ({"jitter": (0.4, 0.4, 0.4)}, "jitter must be 4 finite numbers"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "jitter must be 4 strengths"),
        ({"flip": 1.5}, "flip must be a probability"),
        ({"grey": "often"}, "grey must be a probability"),
        ({"interpolation": "nearest"}, "interpolation must be 'bilinear' or 'bicubic'"),
        ({"sigma": (0.0, 2.0)}, "sigma must be 0 < low"),
        ({"threshold": 256}, "threshold must be an integer from 0 to 255"),
        ({"count": 0}, "count must be an integer of at least 1"),
    ],
)
def test_a_wrong_crop_is_named(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        Crop(**({"size": 32} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crops": ()}, "crops must be at least one Crop"),
        ({"crops": (3,)}, "crops must be at least one Crop"),
        ({"min_overlap": 1.0}, "min_overlap must be a fraction"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be 3 numbers above 0"),
    ],
)
def test_wrong_views_are_named(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        MultiCrop(**({"crops": (Crop(8),)} | arguments))
    with pytest.raises(
        ArgumentError, match=r"views must be a MultiCrop or one of simclr, .* 'swaw'"
    ):
        find_views("swaw")


def test_images_of_another_kind_are_refused():
    views = MultiCrop((Crop(8),))
    p = A.draw(Crop(8), torch.tensor([[8, 8]]), generator())
    for images in (torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ArgumentError, match=r"images must be \(n, 3, h, w\) torch.uint8, got"):
            A.augment(images, torch.tensor([0]), Crop(8), p, views)


def test_constants_of_the_papers():
    swav = VIEWS["swav"]
    large, small = swav.crops
    assert swav.sizes == (224,) * 2 + (96,) * 6
    assert (large.scale, small.scale) == ((0.14, 1.0), (0.05, 0.14))
    assert swav.std[0] == 0.228
    assert large.jitter == (0.8, 0.8, 0.8, 0.2)
    assert VIEWS["swav_2x224"].crops[0].scale == (0.08, 1.0)
    first, second = VIEWS["pixpro"].crops
    assert (first.blur, second.blur, first.solarise, second.solarise) == (1.0, 0.1, 0.0, 0.2)
    assert first.jitter == second.jitter == (0.4, 0.4, 0.2, 0.1)
    assert VIEWS["slotcon"].min_overlap == 0.01
    assert {crop.interpolation for crop in VIEWS["slotcon"].crops} == {"bicubic"}
    assert VIEWS["moco_v2"].crops[0].scale == (0.2, 1.0)
    assert VIEWS["swav_32"].sizes == (32, 32, 16, 16)
