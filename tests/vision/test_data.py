"""Data sets of images, their loaders, and the data module."""

import dataclasses
import gzip
import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import missing
from common.errors import ArgumentError, DataError
from vision.data import SPECS, Crop, Images, MultiCrop, load_images, loading
from vision.data.imagenet100 import CLASSES
from vision.data.views import CIFAR10_MEAN, CIFAR10_STD

TWO = MultiCrop((Crop(8, count=2),))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(loading, "user_cache_path", lambda *a, **k: folder)
    return folder


def shrink(monkeypatch, name: str, **changes) -> None:
    """The data set without checksums, so that files made here pass."""
    files = tuple(dataclasses.replace(file, sha256=None) for file in SPECS[name].files)
    small = {"files": files, "packed_sha256": None} | changes
    monkeypatch.setitem(SPECS, name, dataclasses.replace(SPECS[name], **small))


def write_tar(path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def jpeg(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def write_jpegs(root, broken: int | None = None) -> None:
    flat = np.linspace(20, 220, 6).astype(np.uint8)
    streams = [jpeg(np.full((32, 32, 3), value)) for value in flat]
    if broken is not None:
        streams[broken] = streams[broken][:100]
    (root / "cifar10").mkdir()
    np.savez(
        root / "cifar10" / "cifar10_jpeg.npz",
        jpeg=np.frombuffer(b"".join(streams), dtype=np.uint8),
        offsets=np.cumsum([0, *map(len, streams)]),
        labels=np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8),
        split=np.array([0, 0, 0, 0, 1, 1], dtype=np.uint8),
    )


def test_every_spec_is_complete():
    for name, spec in SPECS.items():
        assert (spec.name, spec.domain) == (name, "vision")
        assert all((spec.title, spec.task, spec.licence, spec.citation, spec.size, spec.homepage))
        assert spec.n_classes > 1
        assert {"train", "test"} <= set(spec.sizes)
        assert spec.embedded is not bool(spec.files)
        assert set(spec.pack_splits) <= set(spec.sizes)
        for file in spec.files:
            assert file.source
            assert (file.url is None) == file.name.endswith("/")
            assert file.url is None or (file.sha256 is not None and len(file.sha256) == 64)
    assert len(CLASSES) == len(set(CLASSES)) == 100


def test_what_is_brought_by_hand_is_a_folder(tmp_path):
    spec = SPECS["imagenet"]
    assert [file.name for file in missing(spec, tmp_path)] == ["train/", "val/"]
    (tmp_path / "imagenet" / "val").mkdir(parents=True)
    assert [file.name for file in missing(spec, tmp_path)] == ["train/"]
    with pytest.raises(DataError, match=r"imagenet: the folder \S*/train is missing; it has to be"):
        load_images("imagenet", root=tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "stl10", "mnist", "imagenette", "voc2012"])
def test_a_missing_data_set_says_what_to_do(tmp_path, name):
    with pytest.raises(DataError, match=rf"{name}: \S* is missing; get it with .*fetch {name}`"):
        load_images(name, root=tmp_path)


def test_unknown_names_are_named(tmp_path):
    with pytest.raises(
        ArgumentError, match=r"dataset must be one of digits, cifar10, .* 'cifar11'"
    ):
        load_images("cifar11")
    with pytest.raises(ArgumentError, match="split must be one of train, test for digits, got 'v'"):
        load_images("digits", "v")


def test_digits_keep_a_fifth_for_testing():
    train, test = load_images("digits"), load_images("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.max() == 255
    assert torch.equal(train.images[:, 0], train.images[:, 2])


def test_jpegs_are_decoded_once(monkeypatch, tmp_path, cache):
    shrink(monkeypatch, "cifar10", sizes={"train": 4, "test": 2})
    write_jpegs(tmp_path)
    train, test = (load_images("cifar10", split, tmp_path) for split in ("train", "test"))
    assert train.images.float().mean(dim=(1, 2, 3)).tolist() == pytest.approx([20, 60, 100, 140])
    assert (train.y.tolist(), test.y.tolist()) == ([0, 1, 2, 0], [1, 2])
    assert len(list(cache.rglob("*.npy"))) == 1
    monkeypatch.setattr(loading, "_decode_all", lambda *a: pytest.fail("decoded again"))
    again = load_images("cifar10", "train", tmp_path)
    assert again.checksum() == train.checksum() != test.checksum()
    assert [path.name for path in (tmp_path / "cifar10").iterdir()] == ["cifar10_jpeg.npz"]


def test_a_damaged_jpeg_is_named(monkeypatch, tmp_path, cache):
    shrink(monkeypatch, "cifar10", sizes={"train": 4, "test": 2})
    write_jpegs(tmp_path, broken=3)
    with pytest.raises(DataError, match=r"cifar10: image 3 cannot be decoded"):
        load_images("cifar10", root=tmp_path)
    assert not list(cache.rglob("*.npy*"))


def test_a_damaged_cache_is_named(monkeypatch, tmp_path, cache):
    shrink(monkeypatch, "cifar10", sizes={"train": 4, "test": 2})
    write_jpegs(tmp_path)
    load_images("cifar10", root=tmp_path)
    (file,) = cache.rglob("*.npy")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"\.npy is damaged: .*; delete it"):
        load_images("cifar10", root=tmp_path)


def test_binary_cifar(monkeypatch, tmp_path):
    random = np.random.default_rng(0)
    records = random.integers(0, 10, (12, 3073), dtype=np.uint8)
    members = {
        f"cifar-10-batches-bin/data_batch_{i + 1}.bin": records[2 * i : 2 * i + 2].tobytes()
        for i in range(5)
    }
    members["cifar-10-batches-bin/test_batch.bin"] = records[10:].tobytes()
    write_tar(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", members)
    shrink(monkeypatch, "cifar10", sizes={"train": 10, "test": 2})
    train = load_images("cifar10", "train", tmp_path)
    assert train.y.tolist() == records[:10, 0].tolist()
    assert train.images[7, 1, 2, 3] == records[7, 1 + 1024 + 2 * 32 + 3]
    assert load_images("cifar10", "test", tmp_path).y.tolist() == records[10:, 0].tolist()

    records = random.integers(0, 20, (3, 3074), dtype=np.uint8)
    members = {f"cifar-100-binary/{part}.bin": records.tobytes() for part in ("train", "test")}
    write_tar(tmp_path / "cifar100" / "cifar-100-binary.tar.gz", members)
    shrink(monkeypatch, "cifar100", sizes={"train": 3, "test": 3})
    assert load_images("cifar100", "train", tmp_path).y.tolist() == records[:, 1].tolist()
    shrink(monkeypatch, "cifar100", sizes={"train": 4, "test": 3})
    with pytest.raises(DataError, match=r"cifar100: 3 train images, not 4, in"):
        load_images("cifar100", "train", tmp_path)


def test_stl10_is_written_by_columns(monkeypatch, tmp_path):
    x = np.random.default_rng(0).integers(0, 255, (3, 3, 96, 96), dtype=np.uint8)
    members = {
        "stl10_binary/train_X.bin": x[:2].tobytes(),
        "stl10_binary/train_y.bin": bytes([10, 1]),
        "stl10_binary/unlabeled_X.bin": x[2:].tobytes(),
    }
    write_tar(tmp_path / "stl10" / "stl10_binary.tar.gz", members)
    shrink(monkeypatch, "stl10", sizes={"train": 2, "test": 0, "train+unlabeled": 3})
    both = load_images("stl10", "train+unlabeled", tmp_path)
    assert both.y.tolist() == [9, 0, -1]
    assert both.images[2, 0, 5, 7] == x[2, 0, 7, 5]


def idx(array: np.ndarray) -> bytes:
    shape = np.array(array.shape, dtype=">i4").tobytes()
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + shape + array.tobytes())


def test_mnist_from_idx_files_and_from_its_pack(monkeypatch, tmp_path):
    shrink(monkeypatch, "mnist", sizes={"train": 4, "test": 4})
    x = np.random.default_rng(0).integers(0, 255, (4, 28, 28), dtype=np.uint8)
    y = np.array([3, 1, 2, 0], dtype=np.uint8)
    folder = tmp_path / "mnist"
    folder.mkdir()
    for stem in ("train", "t10k"):
        (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(idx(x))
        (folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(idx(y))
    test = load_images("mnist", "test", tmp_path)
    assert test.images.shape == (4, 3, 28, 28)
    assert test.y.tolist() == [3, 1, 2, 0]
    np.savez(folder / "mnist_test10k.npz", images=x, labels=y)
    assert load_images("mnist", "test", tmp_path).checksum() == test.checksum()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"half")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz is not an IDX file"):
        load_images("mnist", "train", tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half", b"\x93NUMPY"])
def test_a_damaged_pack(monkeypatch, tmp_path, content):
    shrink(monkeypatch, "camvid")
    (tmp_path / "camvid").mkdir()
    (tmp_path / "camvid" / "camvid_128x96.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"camvid_128x96.npz does not hold camvid"):
        load_images("camvid", root=tmp_path)


def test_a_pack_with_pickled_objects_is_refused(monkeypatch, tmp_path):
    shrink(monkeypatch, "mnist")
    (tmp_path / "mnist").mkdir()
    objects = np.array([{}], dtype=object)
    np.savez(tmp_path / "mnist" / "mnist_test10k.npz", images=objects, labels=objects)
    with pytest.raises(DataError, match=r"does not hold mnist: .*allow_pickle"):
        load_images("mnist", "test", tmp_path)


def test_real_files(real_data):
    real_data("camvid")
    frames = load_images("camvid", "val")
    assert frames.images.shape == (101, 3, 96, 128)
    assert set(frames.y.unique().tolist()) <= {*range(11), 255}
    real_data("mnist")
    digits = load_images("mnist", "test")
    assert digits.images.float().mean().item() / 255 == pytest.approx(0.1325, abs=1e-4)


def write_class_folders(root, name="imagenet100", classes=CLASSES) -> None:
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for i, label in enumerate(classes):
            folder = root / name / part / label
            folder.mkdir(parents=True)
            height, width = random.integers(20, 40, 2)
            image = np.full((height, width, 3), 2 * i, dtype=np.uint8)
            Image.fromarray(image).save(folder / "a.jpeg", quality=95)


def test_folders_are_decoded_when_asked_for(monkeypatch, tmp_path):
    shrink(monkeypatch, "imagenet100", sizes={"train": 0, "test": 100})
    write_class_folders(tmp_path, classes=(*CLASSES, "n00000000"))
    data = Images("imagenet100", TWO, str(tmp_path), batch_size=20, size=16)
    data.setup("fit")
    assert len(data.train_rows) == 100
    batch = next(iter(data.train_dataloader()))
    assert [view.shape for view in batch.views] == [(20, 3, 8, 8)] * 2
    value = (batch.views[0] * torch.tensor(TWO.std)[:, None, None]).mean(dim=(2, 3))
    value = (value + torch.tensor(TWO.mean)).mean(dim=1) * 255
    assert (value - 2 * batch.y).abs().max() < 2
    extent = batch.boxes[..., 2:] - batch.boxes[..., :2]
    assert (extent > 0).all()
    assert (batch.boxes[..., 2:] <= batch.sizes.flip(1)).all()
    plain = next(iter(data.test_dataloader()))
    assert plain.images.shape == (20, 3, 16, 16)
    assert plain.y.tolist() == list(range(20))
    path = tmp_path / "imagenet100" / "val" / CLASSES[7] / "a.jpeg"
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match=rf"{path} cannot be decoded"):
        next(iter(data.test_dataloader()))
    data = Images("imagenet100", TWO, str(tmp_path), batch_size=20)
    data.setup("fit")
    with pytest.raises(ArgumentError, match="size must be given for imagenet100"):
        data.test_dataloader()


def test_a_class_without_a_folder_is_named(tmp_path):
    write_class_folders(tmp_path, classes=CLASSES[1:])
    with pytest.raises(DataError, match=rf"no folder {CLASSES[0]} \(1 are missing\)"):
        load_images("imagenet100", root=tmp_path)


def test_masks_in_files(monkeypatch, tmp_path):
    shrink(monkeypatch, "camvid", sizes={"train": 1, "val": 1, "test": 1})
    mask = np.tile(np.arange(12, dtype=np.uint8), (14, 2))[:, :14]
    for part in ("test", "testannot"):
        folder = tmp_path / "camvid" / "CamVid" / part
        folder.mkdir(parents=True)
        image = mask if part == "testannot" else np.zeros((14, 14, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / "a.png")
    frames = load_images("camvid", "test", tmp_path)
    assert frames.mask(0)[0].tolist() == [*range(11), 255, 0, 1]


def digits(**options) -> Images:
    data = Images("digits", **({"views": TWO, "batch_size": 32} | options))
    data.setup("fit")
    return data


def test_rows_of_a_subset_are_balanced_and_held_out_images_stay_out():
    data = digits(subset=20, validation=5, labels=0.1)
    y = load_images("digits").y
    assert y[data.train_rows].bincount().tolist() == [20] * 10
    assert y[data.validation_rows].bincount().tolist() == [5] * 10
    assert not set(data.train_rows.tolist()) & set(data.validation_rows.tolist())
    shown = torch.cat([batch.y for batch in data.train_dataloader()])
    assert set(shown.tolist()) <= {-1, *range(10)}
    labelled = digits(subset=20, validation=5, labels=0.1, labelled_only=True, batch_size=20)
    assert y[labelled.train_rows].bincount().tolist() == [2] * 10
    assert set(labelled.train_rows.tolist()) < set(data.train_rows.tolist())
    assert digits(subset=20, seed=1).train_rows.tolist() != digits(subset=20).train_rows.tolist()
    assert len({data.checksum, labelled.checksum, digits().checksum}) == 3


def test_an_epoch_shows_every_image_once_and_says_which():
    data = digits(drop_last=False)
    batches = list(data.train_dataloader())
    index = torch.cat([batch.index for batch in batches])
    y = torch.cat([batch.y for batch in batches])
    assert index.sort().values.tolist() == list(range(1437))
    assert torch.equal(y, load_images("digits").y[index])
    assert not torch.equal(batches[0].views[0], batches[0].views[1])
    assert batches[-1].boxes.shape == (2, 1437 % 32, 4)


def test_a_seed_decides_the_batches():
    def first():
        torch.manual_seed(5)
        return next(iter(digits().train_dataloader()))

    one, two = first(), first()
    assert torch.equal(one.views[1], two.views[1])
    assert torch.equal(one.index, two.index)


def test_plain_images_are_normalised_and_in_order():
    data = digits(views="cifar")
    (batch, *_) = data.plain_dataloader("train")
    assert batch.index.tolist() == list(range(32))
    mean, std = (torch.tensor(v)[:, None, None] for v in (CIFAR10_MEAN, CIFAR10_STD))
    expected = (load_images("digits").images[:32] / 255 - mean) / std
    torch.testing.assert_close(batch.images, expected)
    assert data.val_dataloader() == []
    assert next(iter(digits(size=6).predict_dataloader())).images.shape == (32, 3, 6, 6)


def test_images_of_ones_own_and_torchvisions_path():
    images = torch.randint(256, (10, 3, 12, 16), dtype=torch.uint8)
    data = Images.from_arrays(images, views=TWO, batch_size=5, path="per_image")
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert [view.shape for view in batch.views] == [(5, 3, 8, 8)] * 2
    assert (batch.boxes.shape, batch.flips.shape) == ((2, 5, 4), (2, 5))
    assert batch.y.tolist() == [-1] * 5
    assert batch.sizes.tolist() == [[12, 16]] * 5


def test_on_an_accelerator_the_views_are_made_after_the_transfer(monkeypatch):
    data = digits()
    monkeypatch.setattr(Images, "_on_accelerator", lambda self: True)
    loader = data._loader(data.train_dataloader().dataset)
    raw = next(iter(loader))
    assert raw.images.dtype == torch.uint8
    batch = data.on_after_batch_transfer(raw, 0)
    again = data.on_after_batch_transfer(raw, 0)
    assert torch.equal(batch.views[0], again.views[0])
    assert batch.views[0].shape == (32, 3, 8, 8)


def test_workers_draw_different_views():
    images = torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8).repeat(4, 1, 1, 1)
    data = Images.from_arrays(images, views=TWO, batch_size=2, num_workers=2)
    data.setup("fit")
    first, second = data.train_dataloader()
    assert not torch.equal(first.boxes, second.boxes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": 5000}, "batch_size must be at most 1437, the training images"),
        ({"subset": 500}, r"subset must be at most 1\d\d, the images of class 0, got 500"),
        ({"labels": 0.0}, "labels must be a fraction above 0"),
        ({"labels": float("nan")}, "labels must be a fraction above 0"),
        ({"path": "fast"}, "path must be 'batched' or 'per_image', got 'fast'"),
        ({"views": "simsiam"}, "views must be a MultiCrop or one of simclr"),
        ({"train_split": "dev"}, "split must be one of train, test for digits"),
        ({"size": 0}, "size must be an integer of at least 1"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        digits(**arguments)


@pytest.mark.parametrize(
    ("images", "y", "message"),
    [
        (torch.rand(4, 3, 8, 8), None, r"images must be \(n, 3, h, w\) torch.uint8, got .*float32"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), None, r"images must be \(n, 3, h, w\)"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(3).long(), r"y must be \(4,\)"),
    ],
)
def test_wrong_arrays_are_named(images, y, message):
    with pytest.raises(ArgumentError, match=message):
        Images.from_arrays(images, y, views=TWO)
