"""Images and their views as a LightningDataModule."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.data.checksum import array_sha256
from common.errors import ArgumentError, require, require_int
from vision.data.augment import Parameters, augment, colour, crop_each, draw_views, normalise_
from vision.data.loading import ArrayImages, FileImages, load_images
from vision.data.views import MultiCrop, find_views

RESIZE = 256 / 224


class ImageBatch(NamedTuple):
    """What validation, test, prediction and :meth:`Images.plain_dataloader` give.

    ``images (n, 3, h, w)`` float, normalised; ``y (n,)`` labels, -1 for none, or ``(n, h, w)``
    classes of the pixels, 255 for none; ``index (n,)`` rows of the images in their split.
    """

    images: Tensor
    y: Tensor
    index: Tensor  # type: ignore[assignment]


class ViewBatch(NamedTuple):
    """What training gives.

    ``views``: a tensor ``(n, 3, s, s)`` for each view, float, normalised; ``y`` and ``index`` as in
    :class:`ImageBatch`; ``boxes (v, n, 4)`` float, ``flips`` and ``vertical_flips (v, n)`` of each
    view, and ``sizes (n, 2)`` height and width of the images, for :mod:`vision.data.geometry`.
    """

    views: list[Tensor]
    y: Tensor
    index: Tensor  # type: ignore[assignment]
    boxes: Tensor
    flips: Tensor
    vertical_flips: Tensor
    sizes: Tensor


class _Cropped(NamedTuple):
    """Views before their colours change: a tensor uint8 and the parameters for each crop."""

    crops: list[Tensor]
    parameters: list[Parameters]
    y: Tensor
    index: Tensor  # type: ignore[assignment]
    sizes: Tensor


class Images(LightningDataModule):
    """A data set of images; training gives views, everything else the images themselves.

    Small images lie in memory, and each batch's views are made at once. Large images are files,
    decoded and cropped in the workers of the DataLoader; the colours of a batch change at once.
    Under a Trainer on an accelerator the views are made there, else in the worker, or in the main
    process without workers. Views draw from torch's default generator, so that a seed decides them.

    Args:
        dataset: a name in ``vision.data.SPECS``.
        views: a :class:`~vision.data.views.MultiCrop` or a name in ``vision.data.views.VIEWS``.
        root: data root; default :func:`common.data.data_root`.
        batch_size: images a batch and process.
        num_workers: processes that prepare batches.
        train_split: what is trained on, such as ``"train+unlabeled"`` of STL-10.
        subset: train on this many images of each class only, drawn by ``seed``.
        labels: fraction of the training labels, per class, that are known (at least one); the rest
            are -1.
        labelled_only: train on the images with a known label only.
        validation: images of each class held out of training for validation, drawn by ``seed``.
            With 0, validation is the data set's own ``"val"`` split, if it has one, else none.
        seed: of these draws; not of the views.
        size: height and width of the images outside training, a centre crop of the image resized to
            8/7 of that (256 for 224); masks are nearest. None: as they are, only for data sets in
            memory.
        path: ``"batched"``, or ``"per_image"``: by torchvision, image by image in the worker.
        drop_last: whether training leaves out a last batch that is not full.

    Raises:
        ArgumentError: an argument is out of its range; names it.

    Example:
        >>> from vision.data.views import Crop
        >>> data = Images("digits", views=MultiCrop((Crop(8, count=2),)), batch_size=16)
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> [view.shape for view in batch.views], batch.boxes.shape
        ([torch.Size([16, 3, 8, 8]), torch.Size([16, 3, 8, 8])], torch.Size([2, 16, 4]))
    """

    train_images: ArrayImages | FileImages
    train_rows: Tensor
    validation_rows: Tensor

    def __init__(
        self,
        dataset: str,
        views: MultiCrop | str = "simclr",
        root: str | None = None,
        batch_size: int = 256,
        num_workers: int = 0,
        train_split: str = "train",
        subset: int | None = None,
        labels: float = 1.0,
        labelled_only: bool = False,
        validation: int = 0,
        seed: int = 0,
        size: int | None = None,
        path: Literal["batched", "per_image"] = "batched",
        drop_last: bool = True,
    ):
        super().__init__()
        self.views = find_views(views)
        require_int("batch_size", batch_size, 1)
        require_int("num_workers", num_workers, 0)
        require_int("validation", validation, 0)
        require_int("seed", seed, 0)
        if subset is not None:
            require_int("subset", subset, 1)
        if size is not None:
            require_int("size", size, 1)
        require(0 < labels <= 1, "labels", labels, "a fraction above 0 and up to 1")
        require(path in ("batched", "per_image"), "path", path, "'batched' or 'per_image'")
        self.save_hyperparameters(logger=False)
        self._splits: dict[str, ArrayImages | FileImages] = {}

    @classmethod
    def from_arrays(cls, images: Tensor, y: Tensor | None = None, **kwargs: Any) -> "Images":
        """A user's own ``(n, 3, h, w)`` uint8 images, for training and everything else.

        Args:
            images: at least one.
            y: ``(n,)`` int64 labels.
            kwargs: as for the class, without ``dataset``.
        """
        made = cls("custom", **kwargs)
        y = torch.full((len(images),), -1) if y is None else y
        held = ArrayImages(images, y)
        made._splits = {made.hparams["train_split"]: held, "test": held}
        return made

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "train_images"):
            return
        given = self.hparams
        self.train_images = self._split(given["train_split"])
        y = self.train_images.y
        if y.ndim > 1:
            y = torch.full((len(y),), -1)
        generator = torch.Generator().manual_seed(given["seed"])
        rows = torch.randperm(len(y), generator=generator)
        held = _per_class(y[rows], lambda n: given["validation"], "validation")
        self.validation_rows = rows[held].sort().values
        rows = rows[~held]
        if given["subset"] is not None:
            rows = rows[_per_class(y[rows], lambda n: given["subset"], "subset")]
        known = y[rows] >= 0
        if given["labels"] < 1:
            part = given["labels"]
            known &= _per_class(y[rows], lambda n: max(1, round(part * n)), "labels")
        self._known = torch.zeros(len(y), dtype=torch.bool)
        self._known[rows[known]] = True
        self.train_rows = (rows[known] if given["labelled_only"] else rows).sort().values
        count = len(self.train_rows)
        require(count > 0, "labelled_only", True, "False for images without labels")
        require(
            count >= given["batch_size"] or not given["drop_last"],
            "batch_size",
            given["batch_size"],
            f"at most {count}, the training images, or drop_last false",
        )

    @property
    def checksum(self) -> str:
        """SHA-256 of the training images and labels and of the rows that are used."""
        parts = [self.train_images.checksum()]
        rows = [self.train_rows.numpy(), self._known.numpy()]
        return array_sha256(np.array(parts), *rows)

    @property
    def n_classes(self) -> int:
        """Number of classes among the labels."""
        y = self.train_images.y
        if y.dtype == torch.uint8:
            return int(y[y != 255].max()) + 1
        return int(y.max()) + 1

    def train_dataloader(self) -> DataLoader:
        y = self.train_images.y
        if y.ndim == 1:
            y = torch.where(self._known, y, -1)
        read = _TrainRows(self, y)
        return self._loader(read, shuffle=True, drop_last=self.hparams["drop_last"])

    def val_dataloader(self) -> DataLoader | list[Any]:
        if len(self.validation_rows):
            return self._plain(self.train_images, self.validation_rows)
        from vision.data.specs import SPECS

        name = self.hparams["dataset"]
        has_own = name in SPECS and "val" in SPECS[name].sizes
        return self.plain_dataloader("val") if has_own else []

    def test_dataloader(self) -> DataLoader:
        return self.plain_dataloader("test")

    def predict_dataloader(self) -> DataLoader:
        return self.plain_dataloader("test")

    def plain_dataloader(self, split: str = "train") -> DataLoader:
        """The images themselves in order, as :class:`ImageBatch`; of ``"train"`` those in use.

        A method with a memory bank fills it from here; ``index`` counts all images of the split.
        """
        if split == "train":
            return self._plain(self.train_images, self.train_rows)
        images = self._split(split)
        return self._plain(images, torch.arange(len(images)))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self.finish(batch)

    def finish(self, batch: Any) -> Any:
        """Makes the views of a batch, or normalises its images, where they are."""
        if isinstance(batch, _Cropped):
            parts = [
                colour(images, crop, drawn, self.views)
                for images, crop, drawn in zip(
                    batch.crops, self.views.crops, batch.parameters, strict=True
                )
            ]
            return _assemble(parts, batch.parameters, batch)
        if isinstance(batch, ImageBatch) and batch.images.dtype == torch.uint8:
            images = batch.images.float().div_(255)
            return batch._replace(images=normalise_(images, self.views.mean, self.views.std))
        if isinstance(batch, _Raw):
            n = len(batch.images)
            generator = torch.Generator().manual_seed(batch.seed)
            sizes = torch.tensor(batch.images.shape[2:]).repeat(n, 1)
            drawn = draw_views(self.views, sizes, generator)
            parts = [
                augment(batch.images, torch.arange(n).repeat(crop.count), crop, p, self.views)
                for crop, p in zip(self.views.crops, drawn, strict=True)
            ]
            whole = _Cropped([], drawn, batch.y, batch.index, sizes.to(batch.images.device))
            return _assemble(parts, drawn, whole)
        return batch

    def _split(self, split: str) -> ArrayImages | FileImages:
        if split not in self._splits:
            source = self.hparams["dataset"], split, self.hparams["root"]
            self._splits[split] = load_images(*source)
        return self._splits[split]

    def _plain(self, images: ArrayImages | FileImages, rows: Tensor) -> DataLoader:
        size = self.hparams["size"]
        if size is None and isinstance(images, FileImages):
            raise ArgumentError(
                f"size must be given for {images.name}, whose images are of different sizes"
            )
        return self._loader(_PlainRows(images, rows, size))

    def _loader(self, rows: Any, shuffle: bool = False, drop_last: bool = False) -> DataLoader:
        return DataLoader(
            rows,
            batch_size=self.hparams["batch_size"],
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=self.hparams["num_workers"],
            collate_fn=_as_is if self._on_accelerator() else self.finish,
            pin_memory=self._on_accelerator(),
            persistent_workers=self.hparams["num_workers"] > 0,
        )

    def _on_accelerator(self) -> bool:
        strategy = getattr(self.trainer, "strategy", None)
        return strategy is not None and strategy.root_device.type != "cpu"

    def __getstate__(self) -> dict[str, Any]:
        """Workers get the data, not the Trainer."""
        return {**self.__dict__, "trainer": None}


class _Raw(NamedTuple):
    """Images in memory ``(n, 3, h, w)`` uint8 whose views are drawn with ``seed``."""

    images: Tensor
    y: Tensor
    index: Tensor  # type: ignore[assignment]
    seed: int


class _PlainRows(Dataset):
    """Batches of whole images, by their places among some rows."""

    def __init__(self, images: ArrayImages | FileImages, rows: Tensor, size: int | None):
        self.images, self.rows, self.size = images, rows, size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, places: Sequence[int]) -> ImageBatch:
        index = self.rows[torch.as_tensor(places)]
        source = self.images
        if isinstance(source, ArrayImages):
            y = source.y[index]
            images = source.images[index]
            if self.size is not None:
                images = _resize(images, self.size)
                y = y if y.ndim == 1 else _resize(y[:, None], self.size)[:, 0]
            return ImageBatch(images, y.long(), index)
        assert self.size is not None
        images = torch.cat([_resize(source.image(i)[None], self.size) for i in index.tolist()])
        if source.masks is None:
            return ImageBatch(images, source.y[index], index)
        masks = [_resize(source.mask(i)[None, None], self.size)[:, 0] for i in index.tolist()]
        return ImageBatch(images, torch.cat(masks).long(), index)


class _TrainRows(Dataset):
    """Batches of training images, by their places among the rows in use."""

    def __init__(self, data: Images, y: Tensor):
        self.images, self.rows, self.y = data.train_images, data.train_rows, y
        self.views = data.views
        self.per_image = data.hparams["path"] == "per_image"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, places: Sequence[int]) -> Any:
        index = self.rows[torch.as_tensor(places)]
        y, source = self.y[index], self.images
        if isinstance(source, ArrayImages) and not self.per_image:
            return _Raw(source.images[index], y.long(), index, _draw_seed())
        images = [
            source.images[i] if isinstance(source, ArrayImages) else source.image(i)
            for i in index.tolist()
        ]
        sizes = torch.tensor([image.shape[1:] for image in images])
        if self.per_image:
            return self._per_image(images, y.long(), index, sizes)
        drawn = draw_views(self.views, sizes, torch.Generator().manual_seed(_draw_seed()))
        crops = []
        for crop, parameters in zip(self.views.crops, drawn, strict=True):
            parts = [
                crop_each(
                    images[row % len(images)][None],
                    torch.zeros(1, dtype=torch.long),
                    Parameters(*(values[row : row + 1] for values in parameters)),
                    crop.size,
                    crop.interpolation,
                )
                for row in range(len(parameters.boxes))
            ]
            crops.append(torch.cat(parts))
        return _Cropped(crops, drawn, y.long(), index, sizes)

    def _per_image(
        self, images: list[Tensor], y: Tensor, index: Tensor, sizes: Tensor
    ) -> ViewBatch:
        from vision.data.per_image import PerImage

        views, boxes, flips, vertical_flips = [], [], [], []
        for crop in self.views.crops:
            make = PerImage(crop, self.views)
            for _ in range(crop.count):
                made = [make(image) for image in images]
                views.append(torch.stack([view.image for view in made]))
                boxes.append(torch.stack([view.box for view in made]))
                flips.append(torch.stack([view.flip for view in made]))
                vertical_flips.append(torch.stack([view.vertical_flip for view in made]))
        return ViewBatch(
            views,
            y,
            index,
            torch.stack(boxes),
            torch.stack(flips),
            torch.stack(vertical_flips),
            sizes,
        )


def _draw_seed() -> int:
    """From torch's default generator, other in each process of a distributed run."""
    drawn = int(torch.randint(2**62, ()))
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return drawn + torch.distributed.get_rank() if distributed else drawn


def _assemble(parts: list[Tensor], drawn: list[Parameters], batch: _Cropped) -> ViewBatch:
    n, device = len(batch.index), batch.index.device
    views = [view for part in parts for view in part.split(n)]

    def stacked(name: str) -> Tensor:
        values = torch.cat([getattr(parameters, name) for parameters in drawn])
        return values.view(-1, n, *values.shape[1:]).to(device)

    geometry = (stacked("boxes").float(), stacked("flips"), stacked("vertical_flips"))
    return ViewBatch(views, batch.y, batch.index, *geometry, batch.sizes.to(device))


def _as_is(batch: Any) -> Any:
    return batch


def _resize(images: Tensor, size: int) -> Tensor:
    """Centre crop of ``(n, c, h, w)`` uint8 resized to 8/7 of ``size``; masks (c = 1) nearest."""
    height, width = images.shape[2:]
    scale = round(size * RESIZE) / min(height, width)
    shape = [max(size, round(side * scale)) for side in (height, width)]
    if images.shape[1] == 1:
        resized = F.interpolate(images, shape, mode="nearest-exact")
    else:
        resized = F.interpolate(images, shape, mode="bilinear", antialias=True)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return resized[..., top : top + size, left : left + size]


def _per_class(y: Tensor, count: Callable[[int], int], name: str) -> Tensor:
    """``(n,)`` whether a row is among the first ``count(size of its class)`` of its class."""
    chosen = torch.zeros(len(y), dtype=torch.bool)
    for label in y.unique().tolist():
        rows = (y == label).nonzero().flatten()
        wanted = count(len(rows))
        if label < 0 and name == "labels":
            continue
        require(
            wanted <= len(rows), name, wanted, f"at most {len(rows)}, the images of class {label}"
        )
        chosen[rows[:wanted]] = True
    return chosen
