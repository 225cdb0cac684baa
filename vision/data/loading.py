"""Reads the data sets of :mod:`vision.data.specs` from the data root.

Small images come as one uint8 array in memory, or mapped from a file that is written once into the
user's cache where reading the download takes more than a moment (JPEGs, compressed archives). Large
images stay files and are decoded when they are asked for.
"""

import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import track
from torch import Tensor

from common.data.checksum import array_sha256
from common.data.spec import dataset_folder, has_pack, how_to_get, locate
from common.errors import ArgumentError, DataError, require
from common.files import file_sha256, replacing
from vision.data.imagenet100 import CLASSES
from vision.data.specs import ImageSpec, find_spec

VOID = 255
BROKEN = (OSError, ValueError, KeyError, EOFError, SyntaxError, zipfile.BadZipFile, zlib.error)
UNREADABLE = (*BROKEN, tarfile.TarError, Image.DecompressionBombError)
CITYSCAPES_CLASSES = (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)


@dataclass
class ArrayImages:
    """Images in memory.

    Args:
        images: ``(n, 3, h, w)`` uint8.
        y: ``(n,)`` int64 labels, -1 for none, or ``(n, h, w)`` uint8 classes, 255 for none.
        name: of the data set.
    """

    images: Tensor
    y: Tensor
    name: str = "custom"

    def __post_init__(self) -> None:
        images, y = self.images, self.y
        found = f"{tuple(images.shape)} {images.dtype}"
        valid = images.ndim == 4 and images.shape[1] == 3 and images.dtype == torch.uint8
        require(valid and len(images) > 0, "images", found, "(n, 3, h, w) torch.uint8")
        per_image = y.shape == (len(images),) and y.dtype == torch.int64
        per_pixel = y.shape == (len(images), *images.shape[2:]) and y.dtype == torch.uint8
        require(
            per_image or per_pixel,
            "y",
            f"{tuple(y.shape)} {y.dtype}",
            f"({len(images)},) torch.int64 or a torch.uint8 class for each pixel",
        )

    def __len__(self) -> int:
        return len(self.images)

    def checksum(self) -> str:
        """SHA-256 of images and labels."""
        return array_sha256(self.images.numpy(), self.y.numpy())


@dataclass
class FileImages:
    """Images in files, decoded when they are read.

    Args:
        paths: of the images.
        y: ``(n,)`` int64 labels, -1 where there are masks instead.
        masks: files of the class of each pixel; None for labels.
        classes: the values of a mask that count, in the order of the classes; None for 0, 1, ...
        name: of the data set.
    """

    paths: Sequence[Path]
    y: Tensor
    masks: Sequence[Path] | None = None
    classes: tuple[int, ...] | None = None
    name: str = "custom"

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, row: int) -> Tensor:
        """``(3, h, w)`` uint8.

        Raises:
            DataError: the file is missing or damaged; names it.
        """
        return decode(self.paths[row], str(self.paths[row]))

    def mask(self, row: int) -> Tensor:
        """``(h, w)`` uint8 classes, 255 for none."""
        assert self.masks is not None
        try:
            with Image.open(self.masks[row]) as file:
                values = np.array(file)
        except UNREADABLE as error:
            raise DataError(f"{self.masks[row]} cannot be decoded: {error}") from error
        if self.classes is not None:
            table = np.full(256, VOID, dtype=np.uint8)
            table[list(self.classes)] = np.arange(len(self.classes))
            values = table[values]
        return torch.from_numpy(values)

    def checksum(self) -> str:
        """SHA-256 of names, sizes in bytes and labels."""
        files = [f"{path.parent.name}/{path.name} {path.stat().st_size}" for path in self.paths]
        return array_sha256(np.array(files), self.y.numpy())


def load_images(name: str, split: str = "train", root: str | Path | None = None) -> Any:
    """One split of a data set.

    Reads the packed file of the data set if that is in ``<root>/<name>`` and holds the split, the
    canonical download otherwise.

    Args:
        name: a name in ``SPECS``.
        split: ``"train"``, ``"test"`` or another that the data set has. Where a publisher keeps the
            labels of the test images, ``"test"`` is the validation set, as papers report it.
        root: data root; default :func:`common.data.data_root`.

    Returns:
        :class:`ArrayImages` or :class:`FileImages`.

    Raises:
        ArgumentError: unknown ``name`` or ``split``.
        DataError: a file is missing (says where it belongs and how to get it), damaged, or does not
            hold what the data set should.

    Example:
        >>> digits = load_images("digits")
        >>> digits.images.shape, digits.y.shape
        (torch.Size([1437, 3, 8, 8]), torch.Size([1437]))
    """
    spec = find_spec(name)
    require(split in spec.sizes, "split", split, f"one of {', '.join(spec.sizes)} for {name}")
    folder = dataset_folder(spec, root)
    if spec.embedded:
        loaded: ArrayImages | FileImages = _digits(split)
    elif split in spec.pack_splits and has_pack(spec, folder):
        assert spec.packed is not None
        loaded = _reading(spec, locate(spec, spec.packed, root), split, _PACKS[name])
    elif name in _ARCHIVES:
        loaded = _reading(spec, locate(spec, spec.files[0].name, root), split, _ARCHIVES[name])
    elif name in ("mnist", "fashion_mnist"):
        loaded = _idx(spec, split, root)
    else:
        loaded = _FOLDERS[name](spec, split, folder)
    loaded.name = name
    expected = spec.sizes[split]
    if expected and len(loaded) != expected:
        raise DataError(
            f"{name}: {len(loaded)} {split} images, not {expected}, in {folder}; "
            f"{how_to_get(spec, spec.files[0].name)}"
        )
    return loaded


def decode(source: Path | io.BytesIO, what: str) -> Tensor:
    """``(3, h, w)`` uint8 of an image file.

    Raises:
        DataError: it is damaged; says ``what`` it is.
    """
    try:
        with Image.open(source) as file:
            return torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1).contiguous()
    except UNREADABLE as error:
        raise DataError(f"{what} cannot be decoded: {error}") from error


def cached(spec: ImageSpec, source: Path, part: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array that is made from ``source`` once, mapped from a file in the user's cache.

    Raises:
        DataError: the cache cannot be written, or what is there is damaged; names the file.
    """
    folder = user_cache_path("clustrast", appauthor=False) / "prepared" / spec.name
    path = folder / f"{part}-{file_sha256(source)[:16]}.npy"
    if not path.is_file():
        array = make()
        with replacing(path, DataError) as temporary, temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)
    try:
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except BROKEN as error:
        raise DataError(f"{path} is damaged: {error}; delete it, it is made again") from error


def _reading(
    spec: ImageSpec,
    path: Path,
    split: str,
    read: Callable[[ImageSpec, Path, str], tuple[np.ndarray, np.ndarray]],
) -> ArrayImages:
    try:
        images, y = read(spec, path, split)
        return ArrayImages(torch.from_numpy(images), torch.from_numpy(y))
    except (*BROKEN, tarfile.TarError) as error:
        raise DataError(f"{path} does not hold {spec.name}: {error}") from error


def _digits(split: str) -> ArrayImages:
    """scikit-learn's digits; every fifth is a test image."""
    from sklearn.datasets import load_digits

    pixels, y = load_digits(return_X_y=True)
    tested = np.arange(len(y)) % 5 == 0
    rows = tested if split == "test" else ~tested
    grey = (pixels[rows].reshape(-1, 1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    images = torch.from_numpy(grey).expand(-1, 3, -1, -1)
    return ArrayImages(images, torch.from_numpy(y[rows].astype(np.int64)))


def _cifar10_pack(spec: ImageSpec, path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as pack:
        y, splits = pack["labels"], pack["split"]
        streams = pack["jpeg"], pack["offsets"]
    images = cached(spec, path, "all", lambda: _decode_all(spec.name, *streams))
    rows = np.flatnonzero(splits == ("train", "test").index(split))
    first, last = int(rows.min()), int(rows.max()) + 1
    if last - first != len(rows) or len(images) != len(y):
        raise ValueError("its splits are not one after the other")
    return images[first:last], y[first:last].astype(np.int64)


def _decode_all(name: str, jpeg: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """``(n, 3, 32, 32)`` of JPEG streams one after the other."""
    n = len(offsets) - 1
    images = np.empty((n, 3, 32, 32), dtype=np.uint8)
    console = Console(stderr=True)
    steps = track(
        range(n),
        description=f"decoding {name}, once",
        console=console,
        disable=not console.is_terminal,
    )
    for i in steps:
        what = f"{name}: image {i}"
        image = decode(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes()), what)
        if image.shape != (3, 32, 32):
            raise DataError(f"{what} is {tuple(image.shape)}, not (3, 32, 32)")
        images[i] = image.numpy()
    return images


def _mnist_pack(spec: ImageSpec, path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as pack:
        return np.repeat(pack["images"][:, None], 3, axis=1), pack["labels"].astype(np.int64)


def _camvid_pack(spec: ImageSpec, path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as pack:
        rows = pack["split"] == list(spec.sizes).index(split)
        y, images = pack["labels"][rows], pack["images"][rows]
    y = np.where(y < spec.n_classes, y, VOID).astype(np.uint8)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), y


def _cifar_binary(spec: ImageSpec, path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Records of labels and red, green, blue planes; the last label is the fine one."""
    n_labels = 1 if spec.name == "cifar10" else 2
    if spec.name == "cifar10":
        parts = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
        members = [f"cifar-10-batches-bin/{part}.bin" for part in parts]
    else:
        members = [f"cifar-100-binary/{split}.bin"]

    def make() -> np.ndarray:
        return np.concatenate([_member(path, name) for name in members]).reshape(
            -1, n_labels + 3 * 32 * 32
        )

    records = cached(spec, path, split, make)
    images = np.ascontiguousarray(records[:, n_labels:]).reshape(-1, 3, 32, 32)
    return images, records[:, n_labels - 1].astype(np.int64)


def _stl10(spec: ImageSpec, path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    parts = split.split("+")

    def make() -> np.ndarray:
        pixels = [_member(path, f"stl10_binary/{part}_X.bin") for part in parts]
        by_column = [array.reshape(-1, 3, 96, 96) for array in pixels]
        return np.ascontiguousarray(np.concatenate(by_column).transpose(0, 1, 3, 2))

    images = cached(spec, path, split, make)
    y = np.full(len(images), -1, dtype=np.int64)
    if "train" in parts or "test" in parts:
        known = _member(path, f"stl10_binary/{parts[0]}_y.bin").astype(np.int64) - 1
        y[: len(known)] = known
    return images, y


def _member(path: Path, name: str) -> np.ndarray:
    """The bytes of one file of an archive, which is not unpacked."""
    with tarfile.open(path) as archive:
        file = archive.extractfile(name)
        if file is None:
            raise ValueError(f"{name} is no file in it")
        return np.frombuffer(file.read(), dtype=np.uint8)


def _idx(spec: ImageSpec, split: str, root: str | Path | None) -> ArrayImages:
    stem = "train" if split == "train" else "t10k"
    arrays = []
    for what in ("images-idx3", "labels-idx1"):
        path = locate(spec, f"{stem}-{what}-ubyte.gz", root)
        try:
            with gzip.open(path) as file:
                content = file.read()
            if content[:3] != b"\x00\x00\x08":
                raise ValueError("it does not begin as one")
            shape = np.frombuffer(content, dtype=">i4", count=content[3], offset=4)
            pixels = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * content[3])
            arrays.append(pixels.reshape(shape).copy())
        except BROKEN as error:
            raise DataError(f"{path} is not an IDX file: {error}") from error
    images, y = (torch.from_numpy(array) for array in arrays)
    try:
        return ArrayImages(images[:, None].expand(-1, 3, -1, -1), y.long())
    except ArgumentError as error:
        raise DataError(f"{spec.name}: {error}") from error


def _class_folders(folder: Path, classes: Sequence[str] | None = None) -> FileImages:
    """Images in one folder a class, as torchvision's ImageFolder lists them."""
    from torchvision.datasets.folder import find_classes, make_dataset

    try:
        names, found = find_classes(str(folder))
        if classes is not None:
            lacking = sorted(set(classes) - set(names))
            if lacking:
                raise FileNotFoundError(f"no folder {lacking[0]} ({len(lacking)} are missing)")
            found = {name: i for i, name in enumerate(classes)}
        extensions = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
        samples = make_dataset(str(folder), found, extensions=extensions)
    except OSError as error:
        raise DataError(f"{folder} must hold one folder of images a class: {error}") from error
    paths, y = zip(*samples, strict=True)
    return FileImages([Path(path) for path in paths], torch.tensor(y))


def _imagenet(spec: ImageSpec, split: str, folder: Path) -> FileImages:
    classes = CLASSES if spec.name == "imagenet100" else None
    part = "train" if split == "train" else "val"
    _require_folder(spec, folder, part)
    return _class_folders(folder / part, classes)


def _imagenette(spec: ImageSpec, split: str, folder: Path) -> FileImages:
    unpacked = _unpacked(spec, folder, "imagenette2-320")
    return _class_folders(unpacked / ("train" if split == "train" else "val"))


def _voc(spec: ImageSpec, split: str, folder: Path) -> FileImages:
    from torchvision.datasets import VOCSegmentation

    base = _unpacked(spec, folder, "VOCdevkit").parent
    try:
        listed = VOCSegmentation(str(base), "2012", "train" if split == "train" else "val")
    except (OSError, RuntimeError) as error:
        raise DataError(f"{base / 'VOCdevkit'} is not VOC 2012: {error}") from error
    return _with_masks(listed.images, listed.masks)


def _cityscapes(spec: ImageSpec, split: str, folder: Path) -> FileImages:
    from torchvision.datasets import Cityscapes

    for file in spec.files:
        _require_folder(spec, folder, file.name)
    part = "train" if split == "train" else "val"
    try:
        listed = Cityscapes(str(folder), part, "fine", "semantic")
    except (OSError, RuntimeError) as error:
        raise DataError(f"{folder} is not Cityscapes: {error}") from error
    masks = [target[0] for target in listed.targets]
    return _with_masks(listed.images, masks, CITYSCAPES_CLASSES)


def _camvid(spec: ImageSpec, split: str, folder: Path) -> FileImages:
    _require_folder(spec, folder, "CamVid")
    images = sorted((folder / "CamVid" / split).glob("*.png"))
    masks = [folder / "CamVid" / f"{split}annot" / path.name for path in images]
    return _with_masks(images, masks, tuple(range(spec.n_classes)))


def _with_masks(
    images: Sequence[Any], masks: Sequence[Any], classes: tuple[int, ...] | None = None
) -> FileImages:
    y = torch.full((len(images),), -1)
    return FileImages([Path(p) for p in images], y, [Path(p) for p in masks], classes)


def _require_folder(spec: ImageSpec, folder: Path, name: str) -> None:
    if not (folder / name).is_dir():
        by_hand = how_to_get(spec, f"{name.rstrip('/')}/")
        raise DataError(f"{spec.name}: the folder {folder / name} is missing; {by_hand}")


def _unpacked(spec: ImageSpec, folder: Path, name: str) -> Path:
    """The folder ``name`` of an archive: beside it if it is there, else unpacked into the cache."""
    if (folder / name).is_dir():
        return folder / name
    path = locate(spec, spec.files[0].name, folder.parent)
    target = user_cache_path("clustrast", appauthor=False) / "prepared" / spec.name
    if not (target / name).is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        import tempfile

        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            try:
                with tarfile.open(path) as archive:
                    archive.extractall(temporary, filter="data")
                target.mkdir(exist_ok=True)
                (Path(temporary) / name).rename(target / name)
            except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
                raise DataError(f"{path} cannot be unpacked into {target}: {error}") from error
    return target / name


_PACKS = {"cifar10": _cifar10_pack, "mnist": _mnist_pack, "camvid": _camvid_pack}
_ARCHIVES = {"cifar10": _cifar_binary, "cifar100": _cifar_binary, "stl10": _stl10}
_FOLDERS = {
    "imagenette": _imagenette,
    "imagenet": _imagenet,
    "imagenet100": _imagenet,
    "voc2012": _voc,
    "cityscapes": _cityscapes,
    "camvid": _camvid,
}
