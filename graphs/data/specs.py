"""The graph-clustering benchmark of SDCN: six attributed graphs, and an embedded one of the kind.

Sources: labels, graphs and the features of ACM, DBLP and USPS lie in the SDCN repository and are
taken from one commit of it. Citeseer's features, which are not there, come from the Planetoid
files; node order, labels and edges are the same. The features of HHAR and Reuters are only on the
cloud drive that the SDCN README links, and have to be brought by hand.

Checksums: ``acm.txt`` and ``usps.txt`` were rebuilt from arrays, and their git blob ids are those
of the repository, so their SHA-256 values are certain. The label and graph files were rebuilt from
arrays in the line format of the repository (CRLF, or LF for ``usps_label.txt`` and the kNN graphs)
and have the length they have there, but no id was at hand to compare. The bytes of DBLP's files,
of the Planetoid files and of the files brought by hand were not at hand: ``sha256`` is None.
Whatever the source, the numbers of nodes, features, classes and edges are checked after reading,
and the features of ACM, Citeseer and USPS value by value (``features_sha256``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from common.data.spec import DatasetSpec, RemoteFile
from common.errors import require

SDCN = "https://raw.githubusercontent.com/bdy9527/SDCN/da6bb007b7d07362ac04db3e146b4944e2acb883"
PLANETOID = (
    "https://raw.githubusercontent.com/tkipf/gcn/39a4089fe72ad9f055ed6fdb9746abdcfebc4d81/gcn/data"
)
HOMEPAGE = "https://github.com/bdy9527/SDCN"
SDCN_PAPER = "Bo et al., Structural Deep Clustering Network, WWW 2020"


@dataclass(frozen=True)
class GraphSpec(DatasetSpec):
    """A data set that is one attributed graph; the loader checks what it reads against it.

    Args:
        n: number of nodes.
        dim: number of features.
        n_clusters: number of classes.
        edges: number of undirected edges of each published graph, by its neighbours per node; the
            key is None for a graph that is no kNN graph.
        n_neighbors: the key that is used by default.
        stem: how the files of the data set begin.
        features_sha256: of the ``(n, dim)`` float32 features, None where it is not known.
    """

    n: int = 0
    dim: int = 0
    n_clusters: int = 0
    edges: Mapping[int | None, int] = field(default_factory=dict)
    n_neighbors: int | None = None
    stem: str = ""
    features_sha256: str | None = None

    @property
    def label_file(self) -> str:
        """Name of the text file of the labels."""
        return f"{self.stem}_label.txt"

    @property
    def feature_files(self) -> tuple[str, ...]:
        """Names of the files of the features: all that hold neither labels nor a graph."""
        others = ("_label.txt", "_graph.txt")
        return tuple(file.name for file in self.files if not file.name.endswith(others))

    def graph_file(self, n_neighbors: int | None) -> str:
        """Name of the text file of one of the published graphs."""
        return f"{self.stem}{n_neighbors or ''}_graph.txt"


def find_spec(name: str) -> GraphSpec:
    """The data set of that name.

    Raises:
        ArgumentError: there is none; lists those that there are.
    """
    require(name in SPECS, "dataset", name, f"one of {', '.join(SPECS)}")
    return SPECS[name]


def _sdcn(path: str, sha256: str | None) -> RemoteFile:
    return RemoteFile(path.rpartition("/")[2], f"{SDCN}/{path}", sha256, HOMEPAGE)


def _by_hand(name: str) -> RemoteFile:
    source = f"{name} is in the data folder on the cloud drive that {HOMEPAGE} links in its README"
    return RemoteFile(name, None, None, source)


def _planetoid(part: str) -> RemoteFile:
    name = f"ind.citeseer.{part}"
    return RemoteFile(name, f"{PLANETOID}/{name}", None, "https://github.com/tkipf/gcn")


DIGITS = GraphSpec(
    name="digits",
    domain="graphs",
    title="Handwritten digits 8 x 8, 3-nearest-neighbour graph",
    task="node clustering",
    licence="CC BY 4.0",
    citation="Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998",
    size="embedded",
    embedded=True,
    homepage="https://archive.ics.uci.edu/dataset/80",
    n=1797,
    dim=64,
    n_clusters=10,
    n_neighbors=3,
)

ACM = GraphSpec(
    name="acm",
    domain="graphs",
    title="ACM papers, keywords, linked by a common author",
    task="node clustering",
    licence="none stated for the features; graph and labels Apache-2.0",
    citation=SDCN_PAPER,
    size="12 MB",
    files=(
        _sdcn("data/acm.txt", "d17f923ab9ba3cd3e835441075095603bafd5db2b5a1171c0d8a81e4de265659"),
        _sdcn(
            "data/acm_label.txt",
            "a1637c25de4e946d027f131cc02a2f8cae268ac8488fc12fa22e9b275603ead3",
        ),
        _sdcn(
            "graph/acm_graph.txt",
            "54529a64f7b2cd373b3cee450afec900bcf34de3dfb87fe436552efe48b15c87",
        ),
    ),
    packed="sdcn_acm.npz",
    packed_sha256="bad1f7eaeee7de8ddf4f115ee9d81dbf8d83e9c6091b47b17168c9de0ff13498",
    homepage=HOMEPAGE,
    n=3025,
    dim=1870,
    n_clusters=3,
    edges={None: 13128},
    stem="acm",
    features_sha256="b98f5c435e606f97569c6d07625ec81c1fea56bc73e202595f485e7b7320c48a",
)

DBLP = GraphSpec(
    name="dblp",
    domain="graphs",
    title="DBLP authors, keywords, linked by a common paper",
    task="node clustering",
    licence="academic use only for the features; graph and labels Apache-2.0",
    citation=SDCN_PAPER,
    size="3 MB",
    files=(
        _sdcn("data/dblp.txt", None),
        _sdcn("data/dblp_label.txt", None),
        _sdcn("graph/dblp_graph.txt", None),
    ),
    homepage=HOMEPAGE,
    n=4057,
    dim=334,
    n_clusters=4,
    edges={None: 3528},
    stem="dblp",
)

CITESEER = GraphSpec(
    name="citeseer",
    domain="graphs",
    title="Citeseer papers, bags of words, linked by citation",
    task="node clustering",
    licence="none stated for the data; files MIT (features) and Apache-2.0 (graph, labels)",
    citation="Sen et al., Collective Classification in Network Data, AI Magazine 2008",
    size="1 MB",
    files=(
        _planetoid("allx"),
        _planetoid("tx"),
        _planetoid("test.index"),
        _sdcn(
            "data/cite_label.txt",
            "877820efe71f99632dffc43a74503ec84e26ad08c1f6df8bc7ae0ed7554c6cd5",
        ),
        _sdcn(
            "graph/cite_graph.txt",
            "29da9311f1b3060f564263ca6f15e98af459b45f13bee0a6979beb4c41ba6494",
        ),
    ),
    packed="sdcn_citeseer.npz",
    packed_sha256="f1a6a313ad4789f689a915d355f04202008716d9855190ee5c1d8fdb8ac83cf3",
    homepage=HOMEPAGE,
    n=3327,
    dim=3703,
    n_clusters=6,
    edges={None: 4552},
    stem="cite",
    features_sha256="930bfa568388eca1eba4fdc675397fcafb1ad65f40a535405ed76da9187c72ce",
)

USPS = GraphSpec(
    name="usps",
    domain="graphs",
    title="USPS handwritten digits 16 x 16, 3-nearest-neighbour graph",
    task="node clustering",
    licence="none stated for the images; graph and labels Apache-2.0",
    citation="Hull, A Database for Handwritten Text Recognition Research, TPAMI 1994",
    size="23 MB",
    files=(
        _sdcn("data/usps.txt", "83c2fdd51886bf23ac4861e33204b3ba5e2363f57c4109b39febbbf64c45212a"),
        _sdcn(
            "data/usps_label.txt",
            "40e1e201b590cff58953314463591499f72831426073a77483fee648b9c98e91",
        ),
        _sdcn(
            "graph/usps1_graph.txt",
            "0330292f32d8fbaa104b4d494447684d9ba4715e7caf631e441f9695c37653bd",
        ),
        _sdcn(
            "graph/usps3_graph.txt",
            "4bd79c7777ac7ce884794713feea3bd61e67d2581a8df218019182132ff77bb0",
        ),
        _sdcn(
            "graph/usps5_graph.txt",
            "0c62cd6c8f8579d9a98f56281fefd724c0b4ac68b099f8c0aa006236151ef13c",
        ),
        _sdcn(
            "graph/usps10_graph.txt",
            "db0b1f038f838c1cec153ba48127951a1465f3bf40c7a7a2033ffdc6ca581053",
        ),
    ),
    packed="sdcn_usps.npz",
    packed_sha256="e7d2a8a1897a8d50abddbd281c368e6a5bf31b6f9332a7547b900cd8bdf2b375",
    homepage=HOMEPAGE,
    n=9298,
    dim=256,
    n_clusters=10,
    edges={1: 7581, 3: 21452, 5: 34996, 10: 68817},
    n_neighbors=3,
    stem="usps",
    features_sha256="51be3408404b23a5705b4f26f5d45562eedf2f86fb88135b050fe6f0595d52f6",
)

HHAR = GraphSpec(
    name="hhar",
    domain="graphs",
    title="Human activities from phone sensors, 5-nearest-neighbour graph",
    task="node clustering",
    licence="none stated for the features; graph and labels Apache-2.0",
    citation="Stisen et al., Smart Devices are Different, SenSys 2015; " + SDCN_PAPER,
    size="2 MB, features by hand",
    files=(
        _by_hand("hhar.txt"),
        _sdcn(
            "data/hhar_label.txt",
            "5a88e22e6aa7fc975dedf551eb32cf394f3181ebaa921567f85e6b09b8a8df67",
        ),
        _sdcn(
            "graph/hhar1_graph.txt",
            "8c513af72ad633a4c6b4ed73c068640a628455d881cde4dfc46a52d410cb45ea",
        ),
        _sdcn(
            "graph/hhar3_graph.txt",
            "045014715d7d1686813e5126ac3c2ac2ae40b105e8146cae1da2386d83d4d064",
        ),
        _sdcn(
            "graph/hhar5_graph.txt",
            "6f511313e8b7adc9c363bad86b0bb4929cda5632c0bc0fdbcbc2c07fad85f44b",
        ),
        _sdcn(
            "graph/hhar10_graph.txt",
            "0180cac69e014807c584c8b890c02263ce8b0a4ead7d4349ef682f4afc001f48",
        ),
    ),
    packed="sdcn_hhar_graph_only.npz",
    packed_sha256="fa9d6fcf1b1b02b453c6c51fb3926521b41a0b0c3c91a808007d84a97cc62d20",
    packed_lacks=("hhar.txt",),
    homepage=HOMEPAGE,
    n=10299,
    dim=561,
    n_clusters=6,
    edges={1: 7638, 3: 22721, 5: 38039, 10: 75868},
    n_neighbors=5,
    stem="hhar",
)

REUTERS = GraphSpec(
    name="reuters",
    domain="graphs",
    title="Reuters news, tf-idf, 3-nearest-neighbour graph",
    task="node clustering",
    licence="none stated for the features; graph and labels Apache-2.0",
    citation="Lewis et al., RCV1, JMLR 2004; " + SDCN_PAPER,
    size="2 MB, features by hand",
    files=(
        _by_hand("reut.txt"),
        _sdcn(
            "data/reut_label.txt",
            "389bb6aecf89a54552336b3b6fe41477fd16ce06848761d173f8b691a6a92874",
        ),
        _sdcn(
            "graph/reut1_graph.txt",
            "6dcaef98d940617ef0107d24e89f79562d4775eb021d570a2b8a424dd3752762",
        ),
        _sdcn(
            "graph/reut3_graph.txt",
            "26838b1aa912991f33d044556dfba880eff5ba52eeafec5944fead2f9ffb33f6",
        ),
        _sdcn(
            "graph/reut5_graph.txt",
            "05b674c2af0760fb5899a21e155cd06f5ad5c439e88b4b1e181a1a770e0fa2a2",
        ),
        _sdcn(
            "graph/reut10_graph.txt",
            "9a3620080fc9f5e68bfa0d9900677f83411561bf9a454304d8c52884cb4437da",
        ),
    ),
    packed="sdcn_reut_graph_only.npz",
    packed_sha256="d457475fc35778c9b31b03020fa412dae8e025651066abe97b9ac6bfca987219",
    packed_lacks=("reut.txt",),
    homepage=HOMEPAGE,
    n=10000,
    dim=2000,
    n_clusters=4,
    edges={1: 9433, 3: 27867, 5: 46135, 10: 91645},
    n_neighbors=3,
    stem="reut",
)

SPECS: dict[str, GraphSpec] = {
    spec.name: spec for spec in (DIGITS, ACM, DBLP, CITESEER, USPS, HHAR, REUTERS)
}
