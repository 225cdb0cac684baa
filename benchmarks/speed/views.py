"""The whole input pipeline, from indices to a batch of two normalised views, in memory.

All contenders make SimCLR's views with two processes of a DataLoader, one thread each; a step is
an epoch over the images. Ours makes the views of a batch at once; torchvision (transforms.v2 on
uint8 tensors) and lightly (SimCLRTransform on PIL images) image by image. Goal: at most half the
time of either, at 32 px from 32 px and at 224 px from 256 px.
"""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.speed._measure import Goal, run

SIZES = {32: (32, 2560, 256), 224: (256, 192, 32)}  # size of the images, how many, batch size
FORMS = ("ours", "torchvision", "lightly")
CONTENDERS = tuple(f"{form}, {size} px" for size in SIZES for form in FORMS)
PEERS = {f"lightly, {size} px": "lightly.transforms" for size in SIZES}
GOALS = tuple(
    Goal(f"ours, {size} px", f"{peer}, {size} px", time=0.5) for size in SIZES for peer in FORMS[1:]
)
WORKERS = 2


def photographs(n: int, size: int) -> Any:
    """``(n, 3, size, size)`` uint8 smooth random images."""
    import torch
    import torch.nn.functional as F

    coarse = torch.rand(n, 3, size // 8, size // 8)
    smooth = F.interpolate(coarse, (size, size), mode="bicubic").clamp_(0, 1)
    return smooth.mul_(255).to(torch.uint8)


def prepare(contender: str) -> Callable[[], object]:
    from dataclasses import replace

    from torch.utils.data import DataLoader

    from vision.data import VIEWS, Images, MultiCrop

    form, _, size_px = contender.partition(", ")
    size = int(size_px.removesuffix(" px"))
    source, n, batch_size = SIZES[size]
    images = photographs(n, source)
    views = MultiCrop((replace(VIEWS["simclr"].crops[0], size=size),))
    if form == "lightly":
        from lightly.transforms import SimCLRTransform
        from PIL import Image

        transform = SimCLRTransform(size)
        pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        pairs: Any = [(picture, transform) for picture in pictures]
        transformed: Any = _Transformed(pairs)
        loader: Any = DataLoader(
            transformed,
            batch_size,
            shuffle=True,
            num_workers=WORKERS,
            persistent_workers=True,
        )
    else:
        path: Any = "batched" if form == "ours" else "per_image"
        data = Images.from_arrays(
            images, views=views, batch_size=batch_size, num_workers=WORKERS, path=path
        )
        data.setup("fit")
        loader = data.train_dataloader()
    return lambda: [None for _ in loader]


class _Transformed:
    """A data set of pictures, each with its transform."""

    def __init__(self, pairs: Any):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Any:
        picture, transform = self.pairs[index]
        return transform(picture), index


def main(argv: Sequence[str] | None = None) -> int:
    return run("views", prepare, CONTENDERS, GOALS, argv, steps=3, peers=PEERS)


if __name__ == "__main__":
    raise SystemExit(main())
