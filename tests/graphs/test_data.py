"""Loading, checking and batching of attributed graphs."""

import dataclasses
import io
import pickle
import struct
import subprocess
import sys

import lightning as L
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch_geometric.data import Data

from common.data import array_sha256, locate
from common.errors import ArgumentError, DataError
from common.files import file_sha256
from common.neighbors import knn_graph
from graphs.data import SPECS, AttributedGraph, attributed_graph, load_graph
from graphs.data.attributed import Batches
from graphs.data.planetoid import planetoid_features, read_matrix

X = np.array([[0.5, 0, 1.25], [1, 0, 0], [0, 0, 0], [0, 2, 0], [0, 0, 3]], dtype=np.float32)
EDGES = np.array([[0, 1], [1, 0], [1, 2], [3, 1]])
LABELS = np.array([2, 1, 2, 1, 1])


def test_a_graph_is_brought_into_one_form():
    edges = np.array([[1, 0, 2, 2, 1], [0, 1, 2, 1, 0]], dtype=np.int32)
    graph = attributed_graph(X, edges, LABELS, name="toy")
    assert graph.x.dtype == torch.float32
    assert graph.x.numpy() == pytest.approx(X)
    assert graph.edge_index.dtype == torch.int64
    assert graph.edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert graph.y.tolist() == [1, 0, 1, 0, 0]
    assert (graph.name, graph.n_clusters) == ("toy", 2)
    assert graph.has_isolated_nodes()


def test_the_checksum_is_that_of_the_graph_not_of_its_notation():
    graph = attributed_graph(X, EDGES.T, LABELS)
    assert graph.checksum == attributed_graph(X, EDGES[::-1].T, LABELS + 5).checksum
    assert graph.checksum == attributed_graph(X.astype(np.float64), EDGES.T, LABELS).checksum
    others = [
        attributed_graph(X + 1, EDGES.T, LABELS),
        attributed_graph(X, EDGES[:2].T, LABELS),
        attributed_graph(X, EDGES.T, LABELS[::-1].copy()),
        attributed_graph(X, EDGES.T, n_clusters=2),
    ]
    assert len({graph.checksum, *(other.checksum for other in others)}) == 5


def test_numpy_torch_lists_and_sparse_features_give_the_same_graph():
    expected = attributed_graph(X, EDGES.T, LABELS).checksum
    x, edges, y = torch.tensor(X), torch.tensor(EDGES.T), torch.tensor(LABELS)
    assert attributed_graph(x, edges, y).checksum == expected
    assert attributed_graph(x.to_sparse(), edges, y.int()).checksum == expected
    assert attributed_graph(X.tolist(), EDGES.T.tolist(), LABELS.tolist()).checksum == expected
    assert attributed_graph(sp.csr_matrix(X), EDGES.T, LABELS).checksum == expected
    assert attributed_graph(sp.coo_array(X), EDGES.T.astype(np.uint64), LABELS).checksum == expected
    big = (X.astype(">f4"), EDGES.T.astype(">i4"), LABELS.astype(">i8"))
    assert attributed_graph(*big, n_clusters=np.int64(2)).checksum == expected


def test_the_graph_does_not_share_memory_with_the_arguments():
    x = torch.tensor(X)
    graph = attributed_graph(x, EDGES.T, LABELS)
    x.zero_()
    assert graph.x.numpy() == pytest.approx(X)


def test_read_only_arrays_are_taken_without_a_warning(recwarn):
    x = X.copy()
    x.flags.writeable = False
    attributed_graph(x, EDGES.T, LABELS)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"edge_index": [[0, 1], [1, 5]]}, r"edge_index names node 5, but the 5 nodes are 0 to 4"),
        ({"edge_index": [[0, -1], [1, 2]]}, r"edge_index names node -1"),
        ({"edge_index": EDGES}, r"edge_index must be \(2, e\)"),
        ({"edge_index": [[0.0], [1.0]]}, r"edge_index must hold integers"),
        (
            {"x": np.where(X == 3, np.nan, X)},
            r"x must be finite, got nan at node 4, feature 2 \(1 ",
        ),
        ({"x": np.where(X > 0, np.inf, X)}, r"x must be finite, got inf at node 0, feature 0 \(5 "),
        ({"x": X.astype(np.float64) * 1e200}, r"x must be finite"),
        ({"x": [["a", "b"], ["c", "d"]]}, r"x must be an array of numbers"),
        ({"x": [[1.0], [2.0, 3.0]]}, r"x must be an array of numbers, got list"),
        ({"edge_index": "edges"}, r"edge_index must be an array of numbers, got str"),
        ({"edge_index": sp.eye_array(5)}, r"edge_index must be an array of numbers"),
        ({"y": list("abcde")}, r"y must be an array of numbers, got list"),
        ({"x": X[0]}, r"x must be real and \(n, d\)"),
        ({"x": X.astype(complex)}, r"x must be real"),
        ({"x": X[:1]}, r"x must have at least 2 nodes"),
        ({"x": X[:, :0]}, r"x must have at least 2 nodes and 1 feature"),
        ({"y": LABELS[:4]}, r"y must hold one label for each of 5 nodes"),
        ({"y": LABELS[:, None]}, r"y must hold one label"),
        ({"y": LABELS * 1.0}, r"y must hold integers"),
        ({"n_clusters": 6}, r"n_clusters must be an integer from 1 to 5, got 6"),
        ({"n_clusters": 0}, r"n_clusters must be an integer from 1 to 5, got 0"),
        ({"n_clusters": 2.5}, r"n_clusters must be an integer from 1 to 5, got 2.5"),
        ({"n_clusters": True}, r"n_clusters must be an integer from 1 to 5, got True"),
        ({"y": None}, r"n_clusters must be given"),
    ],
)
def test_what_is_wrong_with_a_graph_is_named(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        attributed_graph(**({"x": X, "edge_index": EDGES.T, "y": LABELS} | arguments))


def test_listing_the_data_sets_loads_no_library():
    code = (
        "import sys, graphs.data; print(list(graphs.data.SPECS), "
        "{'torch', 'numpy', 'lightning', 'sklearn'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip().endswith("set()")
    assert list(SPECS) == ["digits", "acm", "dblp", "citeseer", "usps", "hhar", "reuters"]


def test_every_spec_is_complete():
    for name, spec in SPECS.items():
        assert spec.name == name
        assert spec.domain == "graphs"
        assert all((spec.title, spec.task, spec.licence, spec.citation, spec.size, spec.homepage))
        assert min(spec.n, spec.dim, spec.n_clusters) > 0
        assert spec.embedded is not bool(spec.files)
        names = [file.name for file in spec.files]
        assert len(set(names)) == len(names)
        for file in spec.files:
            assert file.source
            assert file.url is None or file.url.startswith("https://")
            assert file.url is None or file.url.endswith(f"/{file.name}")
            assert file.sha256 is None or len(file.sha256) == 64
        assert set(spec.packed_lacks) <= set(names)
        if not spec.embedded:
            assert spec.n_neighbors in spec.edges
            assert {spec.graph_file(k) for k in spec.edges} <= set(names)
            assert f"{spec.stem}_label.txt" in names


def test_digits_follow_the_definition():
    graph = load_graph("digits")
    assert graph.x.shape == (1797, 64)
    assert graph.x.max() == 1
    assert graph.n_clusters == 10
    links = knn_graph(graph.x, 3)
    dense = torch.zeros(1797, 1797, dtype=torch.bool)
    dense[links[0], links[1]] = True
    assert torch.equal(graph.edge_index, (dense | dense.T).nonzero().T)
    assert load_graph("digits").checksum == graph.checksum
    assert load_graph("digits", n_neighbors=5).edge_index.shape[1] > graph.edge_index.shape[1]


@pytest.mark.parametrize(
    ("name", "n_neighbors", "message"),
    [
        ("cora", None, r"dataset must be one of digits, acm, .* got 'cora'"),
        ("acm", 3, r"n_neighbors must be None for acm, whose graph is given, got 3"),
        ("usps", 4, r"n_neighbors must be one of 1, 3, 5, 10 for usps, got 4"),
        ("usps", 3.0, r"n_neighbors must be an integer of at least 1, got 3.0"),
        ("digits", 0, r"n_neighbors must be an integer of at least 1, got 0"),
        ("digits", 1797, r"n_neighbors"),
    ],
)
def test_an_unknown_graph_is_named(name, n_neighbors, message, tmp_path):
    with pytest.raises(ArgumentError, match=message):
        load_graph(name, tmp_path, n_neighbors)


def shrink(monkeypatch, name, **changes):
    """Makes the data set one of five nodes, for files that ``write_text`` writes."""
    spec = SPECS[name]
    small = {
        "n": 5,
        "dim": 3,
        "n_clusters": 2,
        "edges": dict.fromkeys(spec.edges, 3),
        "features_sha256": None,
        "packed_sha256": None,
        "files": tuple(dataclasses.replace(file, sha256=None) for file in spec.files),
    }
    monkeypatch.setitem(SPECS, name, dataclasses.replace(spec, **(small | changes)))
    return SPECS[name]


def write_text(root, spec, ending="\n", labels=LABELS, edges=EDGES, x=X):
    folder = root / spec.name
    folder.mkdir(exist_ok=True)

    def write(name, rows):
        lines = (" ".join(str(value) for value in np.atleast_1d(row).tolist()) for row in rows)
        (folder / name).write_bytes("".join(line + ending for line in lines).encode())

    write(f"{spec.stem}.txt", x)
    write(f"{spec.stem}_label.txt", labels)
    for n_neighbors in spec.edges:
        write(spec.graph_file(n_neighbors), edges)
    return folder


@pytest.mark.parametrize("name", ["acm", "dblp", "usps", "hhar", "reuters"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_text_files(monkeypatch, tmp_path, name, ending):
    write_text(tmp_path, shrink(monkeypatch, name), ending)
    graph = load_graph(name, tmp_path)
    expected = attributed_graph(X, EDGES.T, LABELS)
    assert graph.checksum == expected.checksum
    assert graph.y.tolist() == [1, 0, 1, 0, 0]
    assert graph.name == name


def test_another_published_graph_is_another_file(monkeypatch, tmp_path):
    spec = shrink(monkeypatch, "usps", edges={1: 1, 3: 3})
    write_text(tmp_path, spec)
    (tmp_path / "usps" / "usps1_graph.txt").write_text("4 0\n")
    assert load_graph("usps", tmp_path, 1).edge_index.tolist() == [[0, 4], [4, 0]]
    assert load_graph("usps", tmp_path).edge_index.shape == (2, 6)


@pytest.mark.parametrize("name", ["hhar", "reuters"])
def test_a_pack_of_labels_and_graphs_with_features_by_hand(monkeypatch, tmp_path, name):
    spec = shrink(monkeypatch, name)
    folder = write_text(tmp_path, spec)
    expected = load_graph(name, tmp_path)
    keep = folder / f"{spec.stem}.txt"
    for path in folder.iterdir():
        if path != keep:
            path.unlink()
    np.savez(folder / spec.packed, y=LABELS, **{f"knn{k}_raw": EDGES for k in spec.edges})
    assert load_graph(name, tmp_path).checksum == expected.checksum
    keep.unlink()
    with pytest.raises(DataError, match=r"is missing; it has to be brought by hand") as caught:
        load_graph(name, tmp_path)
    assert str(keep) in str(caught.value)
    assert "github.com/bdy9527/SDCN" in str(caught.value)


@pytest.mark.parametrize("name", ["hhar", "reuters"])
def test_features_by_hand_are_not_rounded_with_or_without_the_pack(monkeypatch, tmp_path, name):
    spec = shrink(monkeypatch, name)
    folder = write_text(tmp_path, spec, x=X.astype(np.float64) + 1.23456789e-5)
    expected = load_graph(name, tmp_path)
    assert expected.x[2, 0] == np.float32(1.23456789e-5)
    np.savez(folder / spec.packed, y=LABELS, **{f"knn{k}_raw": EDGES for k in spec.edges})
    assert load_graph(name, tmp_path).checksum == expected.checksum


def test_pack_and_text_give_the_same_graph(monkeypatch, tmp_path):
    third = np.float32(1) / 3
    spec = shrink(monkeypatch, "usps")
    folder = write_text(tmp_path, spec, x=X * 0 + 0.333333)
    text = load_graph("usps", tmp_path)
    np.savez(folder / spec.packed, x=X * 0 + third, y=LABELS, knn3_raw=EDGES)
    (folder / "usps.txt").unlink()
    assert load_graph("usps", tmp_path).checksum == text.checksum


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": LABELS[:4]}, r"dblp: y must hold one label for each of 5 nodes"),
        (
            {"labels": [0, 1, 2, 1, 1]},
            r"dblp: 3 classes, not 2, in \S*/dblp_label.txt; remove that and get .* fetch dblp`$",
        ),
        ({"labels": ["a"] * 5}, r"dblp_label.txt is not a table of numbers"),
        ({"edges": [[0, 1], [2, 9], [1, 3]]}, r"dblp: edge_index names node 9"),
        ({"edges": EDGES[:2]}, r"dblp: 1 edges, not 3, in \S*/dblp_graph.txt"),
        ({"edges": [[0, 1, 2]]}, r"dblp: edge_index must be \(2, e\)"),
        ({"x": X[:, :2]}, r"dblp: 2 features, not 3, in \S*/dblp.txt"),
        ({"x": np.where(X == 3, np.nan, X)}, r"dblp: x must be finite, got nan at node 4"),
        ({"x": [[0, 1, 2], [3, 4]]}, r"dblp.txt is not a table of numbers"),
        ({"x": []}, r"dblp.txt is not a table of numbers"),
        ({"edges": []}, r"dblp_graph.txt is not a table of numbers"),
    ],
)
def test_files_that_do_not_hold_the_data_set(monkeypatch, tmp_path, changes, message):
    spec = shrink(monkeypatch, "dblp")
    write_text(tmp_path, spec, **changes)
    with pytest.raises(DataError, match=message):
        load_graph("dblp", tmp_path)


def test_a_wrong_file_is_named_and_no_other_is_told_to_be_removed(monkeypatch, tmp_path):
    spec = shrink(monkeypatch, "hhar")
    folder = write_text(tmp_path, spec, x=X[:, :2])
    with pytest.raises(DataError, match=r"in \S*/hhar.txt; it has to be brought by hand") as caught:
        load_graph("hhar", tmp_path)
    assert "remove" not in str(caught.value)
    write_text(tmp_path, spec)
    np.savez(folder / spec.packed, y=LABELS % 2 + [0, 0, 0, 0, 2], knn5_raw=EDGES)
    with pytest.raises(
        DataError, match=r"3 classes, not 2, in \S*_only.npz; restore it, or delete"
    ):
        load_graph("hhar", tmp_path)


def test_other_features_than_the_published(monkeypatch, tmp_path):
    spec = shrink(monkeypatch, "acm", features_sha256=array_sha256(X))
    write_text(tmp_path, spec)
    load_graph("acm", tmp_path)
    write_text(tmp_path, spec, x=np.where(X == 3, 4, X))
    with pytest.raises(
        DataError, match=r"acm: other features than the published ones, in \S*/acm.txt"
    ):
        load_graph("acm", tmp_path)


@pytest.mark.parametrize("name", ["acm", "citeseer", "dblp", "usps"])
def test_a_missing_data_set_says_what_to_do(tmp_path, name):
    with pytest.raises(DataError) as caught:
        load_graph(name, tmp_path)
    message = str(caught.value)
    assert str(tmp_path / name) in message
    assert f"clustrast datasets fetch {name}" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 half a pack", pickle.dumps([1]), b"\x93NUMPY"]
)
def test_a_damaged_pack(monkeypatch, tmp_path, content):
    (tmp_path / "acm").mkdir()
    pack = tmp_path / "acm" / "sdcn_acm.npz"
    pack.write_bytes(content)
    with pytest.raises(DataError, match=r"sdcn_acm.npz is damaged or incomplete"):
        load_graph("acm", tmp_path)
    shrink(monkeypatch, "acm")
    with pytest.raises(DataError, match=r"sdcn_acm.npz is not the pack of acm"):
        load_graph("acm", tmp_path)


def test_a_pack_without_an_array_or_with_objects(monkeypatch, tmp_path):
    spec = shrink(monkeypatch, "acm")
    (tmp_path / "acm").mkdir()
    pack = tmp_path / "acm" / spec.packed
    np.savez(pack, x=X, y=LABELS)
    with pytest.raises(DataError, match=r"not the pack of acm: .*edges_raw"):
        load_graph("acm", tmp_path)
    np.savez(pack, x=X, y=np.array([{}] * 5), edges_raw=EDGES)
    with pytest.raises(DataError, match=r"allow_pickle"):
        load_graph("acm", tmp_path)


def test_a_pack_of_damaged_compressed_bytes(monkeypatch, tmp_path):
    spec = shrink(monkeypatch, "acm")
    (tmp_path / "acm").mkdir()
    pack = tmp_path / "acm" / spec.packed
    np.savez_compressed(pack, y=LABELS)
    content = bytearray(pack.read_bytes())
    start = 30 + int.from_bytes(content[26:28], "little") + int.from_bytes(content[28:30], "little")
    content[start] ^= 0b110  # an unknown kind of block
    pack.write_bytes(content)
    with pytest.raises(DataError, match=r"not the pack of acm: .*decompressing"):
        load_graph("acm", tmp_path)


class Python2Pickler(pickle._Pickler):
    """Writes strings, arrays and matrices as Python 2 did."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_string(self, text):
        content = text if isinstance(text, bytes) else text.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_string

    def save_global(self, thing, name=None):
        homes = {
            sp.csr_matrix: "scipy.sparse.csr\ncsr_matrix",
            np.ndarray: "numpy\nndarray",
            np.dtype: "numpy\ndtype",
            np.empty(0).__reduce__()[0]: "numpy.core.multiarray\n_reconstruct",
        }
        if thing not in homes:
            return super().save_global(thing, name)
        self.write(pickle.GLOBAL + homes[thing].encode() + b"\n")
        return self.memoize(thing)

    dispatch[type] = save_global


def python2_pickle(path, thing):
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(thing)
    path.write_bytes(stream.getvalue())
    return path


def test_a_python_2_matrix_is_read(tmp_path):
    path = python2_pickle(tmp_path / "matrix", sp.csr_matrix(X))
    assert b"numpy.core.multiarray\n_reconstruct" in path.read_bytes()
    assert read_matrix(path).toarray() == pytest.approx(X)


def test_the_oldest_protocol_is_read(tmp_path):
    """Objects went through ``copy_reg._reconstructor`` there."""
    matrix = python2_pickle(tmp_path / "matrix", sp.csr_matrix(X)).read_bytes()
    start = matrix.index(b"cscipy.sparse.csr\ncsr_matrix\n")
    end = matrix.index(pickle.NEWOBJ, start) + 1
    old = b"ccopy_reg\n_reconstructor\n(cscipy.sparse.csr\ncsr_matrix\nc__builtin__\nobject\nNtR"
    (tmp_path / "matrix").write_bytes(matrix[:start] + old + matrix[end:])
    assert read_matrix(tmp_path / "matrix").toarray() == pytest.approx(X)


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_run_something_is_refused(tmp_path, protocol):
    trace = tmp_path / "trace"
    (tmp_path / "matrix").write_bytes(pickle.dumps(Harmful(trace), protocol=protocol))
    with pytest.raises(DataError, match=r"asks for .*open"):
        read_matrix(tmp_path / "matrix")
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps([1, 2], protocol=2)])
def test_a_file_that_is_no_matrix_is_refused(tmp_path, content):
    (tmp_path / "matrix").write_bytes(content)
    with pytest.raises(DataError, match="not a pickled sparse matrix"):
        read_matrix(tmp_path / "matrix")


def test_a_cut_or_inconsistent_matrix_is_refused(tmp_path):
    path = python2_pickle(tmp_path / "matrix", sp.csr_matrix(X))
    whole = path.read_bytes()
    for size in range(0, len(whole), 17):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError):
            read_matrix(path)
    matrix = sp.csr_matrix(X)
    matrix.indices[0] = 99
    with pytest.raises(DataError, match="not a pickled sparse matrix"):
        read_matrix(python2_pickle(path, matrix))


def test_planetoid_features_in_the_order_of_the_nodes(tmp_path):
    known = python2_pickle(tmp_path / "allx", sp.csr_matrix(X[:2]))
    tested = python2_pickle(tmp_path / "tx", sp.csr_matrix(X[3:]))
    index = tmp_path / "test.index"
    index.write_text("4\n2\n")
    features = planetoid_features(known, tested, index, shape=(5, 3))
    assert features.dtype == np.float32
    assert features == pytest.approx(np.stack([X[0], X[1], X[4], 0 * X[0], X[3]]))
    for shape in [(4, 3), (6, 3), (5, 2)]:
        with pytest.raises(DataError, match="do not make"):
            planetoid_features(known, tested, index, shape=shape)
    for wrong in ("4\n", "4\n1\n", "4\n4\n", "4\n2\n3\n", "3\n2\n", "2\n1000000000000\n", ""):
        index.write_text(wrong)
        with pytest.raises(DataError, match="do not make 5 x 3 features together"):
            planetoid_features(known, tested, index, shape=(5, 3))
    for wrong in ("four\n", "9" * 30):
        index.write_text(wrong)
        with pytest.raises(DataError, match="not a list of node ids"):
            planetoid_features(known, tested, index, shape=(5, 3))


def test_citeseer_from_planetoid_files(monkeypatch, tmp_path):
    spec = shrink(monkeypatch, "citeseer")
    folder = write_text(tmp_path, spec)
    python2_pickle(folder / "ind.citeseer.allx", sp.csr_matrix(X[:3]))
    python2_pickle(folder / "ind.citeseer.tx", sp.csr_matrix(X[[4, 3]]))
    (folder / "ind.citeseer.test.index").write_text("4\n3\n")
    graph = load_graph("citeseer", tmp_path)
    assert graph.checksum == attributed_graph(X, EDGES.T, LABELS).checksum


@pytest.mark.parametrize(("name", "isolated"), [("acm", 561), ("citeseer", 48), ("usps", 0)])
def test_real_graphs(real_data, name, isolated):
    real_data(name)
    graph = load_graph(name)
    spec = SPECS[name]
    assert graph.x.shape == (spec.n, spec.dim)
    assert graph.edge_index.shape[1] == 2 * spec.edges[spec.n_neighbors]
    assert spec.n - len(graph.edge_index.unique()) == isolated
    homophily = {"acm": 0.821, "citeseer": 0.736}.get(name)
    if homophily:
        source, target = graph.edge_index
        agreement = (graph.y[source] == graph.y[target]).float().mean()
        assert float(agreement) == pytest.approx(homophily, abs=5e-4)


def test_usps_in_the_published_text_format(real_data, tmp_path):
    """The text rebuilt from the pack has the checksums of the specification, and loads the same."""
    real_data("usps")
    spec = SPECS["usps"]
    folder = tmp_path / "usps"
    folder.mkdir()
    with np.load(locate(spec, spec.packed)) as pack:
        np.savetxt(folder / "usps.txt", pack["x"], fmt="%f", newline="\n")
        np.savetxt(folder / "usps_label.txt", pack["y"], fmt="%d", newline="\n")
        for k in spec.edges:
            edges = pack[f"knn{k}_raw"]
            np.savetxt(folder / spec.graph_file(k), edges, fmt="%d", newline="\n")
    for file in spec.files:
        assert file_sha256(folder / file.name) == file.sha256
    for k in spec.edges:
        assert load_graph("usps", tmp_path, k).checksum == load_graph("usps", None, k).checksum


def test_acm_in_the_published_text_format(real_data, tmp_path):
    real_data("acm")
    spec = SPECS["acm"]
    folder = tmp_path / "acm"
    folder.mkdir()
    with np.load(locate(spec, spec.packed)) as pack:
        for name, key in [("acm.txt", "x"), ("acm_label.txt", "y"), ("acm_graph.txt", "edges_raw")]:
            np.savetxt(folder / name, pack[key], fmt="%d", newline="\r\n")
    for file in spec.files:
        assert file_sha256(folder / file.name) == file.sha256
    assert load_graph("acm", tmp_path).checksum == load_graph("acm").checksum


def test_a_truncated_real_pack(real_data, tmp_path):
    real_data("acm")
    content = locate(SPECS["acm"], "sdcn_acm.npz").read_bytes()
    (tmp_path / "acm").mkdir()
    (tmp_path / "acm" / "sdcn_acm.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"sdcn_acm.npz is damaged or incomplete"):
        load_graph("acm", tmp_path)


@pytest.mark.parametrize("name", ["hhar", "reuters"])
def test_real_labels_and_graphs_without_features(real_data, tmp_path, name):
    real_data(name)
    spec = SPECS[name]
    folder = tmp_path / name
    folder.mkdir()
    with np.load(locate(spec, spec.packed)) as pack:
        first_label = {"hhar": 1, "reuters": 0}[name]
        labels = folder / f"{spec.stem}_label.txt"
        ending = "\r\n"
        np.savetxt(labels, pack["y"] + first_label, fmt="%d", newline=ending)
        for k in spec.edges:
            np.savetxt(folder / spec.graph_file(k), pack[f"knn{k}_raw"], fmt="%d", newline="\n")
    np.savetxt(folder / f"{spec.stem}.txt", np.eye(spec.n, spec.dim), fmt="%d")
    graph = load_graph(name, tmp_path)
    assert graph.edge_index.shape[1] == 2 * spec.edges[spec.n_neighbors]
    for k in spec.edges:
        assert locate(spec, spec.graph_file(k), tmp_path).is_file()


def test_the_published_usps_graph_is_the_exact_knn_graph(real_data):
    real_data("usps")
    graph = load_graph("usps")
    made = attributed_graph(graph.x, knn_graph(graph.x, 3), graph.y)
    assert torch.equal(made.edge_index, graph.edge_index)


class Probe(L.LightningModule):
    """Records its batches and learns nothing of use."""

    def __init__(self, in_dim):
        super().__init__()
        self.layer = torch.nn.Linear(in_dim, 2)
        self.batches = {"train": [], "val": [], "test": []}

    def forward(self, batch):
        return self.layer(batch.x)

    def step(self, kind, batch):
        self.batches[kind].append(batch)
        return self(batch).square().mean()

    def training_step(self, batch, batch_idx):
        return self.step("train", batch)

    def validation_step(self, batch, batch_idx):
        self.step("val", batch)

    def test_step(self, batch, batch_idx):
        self.step("test", batch)

    def predict_step(self, batch, batch_idx):
        return self(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer(tmp_path, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_model_summary=False,
        **(quiet | options),
    )


def toy(**options):
    return AttributedGraph.from_arrays(X, EDGES.T, LABELS, **options)


@pytest.mark.filterwarnings("error:.*does not have many workers")
@pytest.mark.parametrize("sparse", [False, True])
def test_the_whole_graph_is_one_batch_and_is_not_copied(tmp_path, sparse):
    data = toy(sparse=sparse)
    data.setup("fit")
    probe = Probe(data.in_dim)
    runner = trainer(tmp_path, max_epochs=2, num_sanity_val_steps=0, log_every_n_steps=1)
    runner.fit(probe, data)
    runner.test(probe, data, verbose=False)
    [prediction] = runner.predict(probe, data)
    assert [len(probe.batches[kind]) for kind in ("train", "val", "test")] == [2, 2, 1]
    for batch in [*probe.batches["train"], *probe.batches["val"], *probe.batches["test"]]:
        assert batch.edge_index.data_ptr() == data.graph.edge_index.data_ptr()
        assert batch.x.layout == (torch.sparse_csr if sparse else torch.strided)
    with torch.no_grad():
        torch.testing.assert_close(prediction, probe.layer(torch.tensor(X)))


@pytest.mark.filterwarnings("error:.*does not have many workers")
def test_mini_batches_are_dense_rows_with_their_labels(tmp_path):
    data = toy(batch_size=2, sparse=True)
    data.setup("fit")
    probe = Probe(data.in_dim)
    runner = trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0, log_every_n_steps=1)
    runner.fit(probe, data)
    seen = probe.batches["train"]
    assert [len(batch.x) for batch in seen] == [2, 2, 1]
    rows = torch.cat([torch.cat([batch.x, batch.y[:, None]], dim=1) for batch in seen])
    expected = torch.tensor(np.column_stack([X, LABELS - 1]))
    assert torch.equal(rows[rows[:, 0].argsort()].unique(dim=0), expected.unique(dim=0))
    assert all(batch.edge_index is None for batch in seen)
    [whole] = probe.batches["val"]
    assert whole.edge_index is not None
    assert whole.x.layout == torch.sparse_csr


def test_the_whole_graph_draws_no_random_number():
    data = toy()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.predict_dataloader()):
        assert len(loader) == len(list(loader)) == 1
    assert torch.equal(torch.get_rng_state(), before)


def test_mini_batches_follow_the_seed_and_change_every_epoch():
    loader = AttributedGraph.from_arrays(torch.arange(50.0)[:, None], n_clusters=2).node_batches(8)
    assert isinstance(loader, Batches)

    def order(seed=None):
        if seed is not None:
            torch.manual_seed(seed)
        batches = list(loader)
        assert len(batches) == len(loader) == 7
        return torch.cat([batch.x for batch in batches]).ravel().tolist()

    first, second = order(seed=3), order()
    assert first != second
    assert sorted(first) == sorted(second) == list(range(50))
    assert [order(seed=3), order()] == [first, second]


def test_sparse_is_chosen_by_density():
    dense, thin = torch.ones(10, 30), torch.eye(10, 30)

    def features(x, **options):
        return AttributedGraph.from_arrays(x, n_clusters=2, **options).graph.x

    assert features(dense).layout == torch.strided
    assert features(thin).layout == torch.sparse_csr
    assert features(thin, sparse=False).layout == torch.strided
    assert torch.equal(features(dense, sparse=True).to_dense(), dense)


def test_from_arrays_builds_the_neighbor_graph():
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    data = AttributedGraph.from_arrays(x, n_clusters=4, n_neighbors=2)
    data.setup("fit")
    assert torch.equal(
        data.graph.edge_index, attributed_graph(x, knn_graph(x, 2), n_clusters=4).edge_index
    )
    assert (data.in_dim, data.n_clusters, data.graph.y) == (4, 4, None)
    assert data.checksum == data.graph.checksum
    assert toy().n_clusters == 2
    with pytest.raises(ArgumentError, match="n_neighbors"):
        AttributedGraph.from_arrays(x, n_clusters=4, n_neighbors=30)
    with pytest.raises(ArgumentError, match="x must be finite"):
        AttributedGraph.from_arrays(x / 0, n_clusters=4)


def test_a_named_data_set_loads_in_setup_once(monkeypatch, tmp_path):
    write_text(tmp_path, shrink(monkeypatch, "hhar"))
    data = AttributedGraph("hhar", root=str(tmp_path), n_neighbors=3, sparse=False)
    data.setup("fit")
    graph = data.graph
    data.setup("test")
    assert data.graph is graph
    assert isinstance(graph, Data)
    assert (graph.name, data.in_dim, data.n_clusters) == ("hhar", 3, 2)
    with pytest.raises(DataError, match="acm"):
        AttributedGraph("acm", root=str(tmp_path)).setup("fit")
    with pytest.raises(ArgumentError, match="dataset"):
        AttributedGraph("nothing").setup("fit")


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True])
def test_a_wrong_batch_size_is_named(batch_size):
    with pytest.raises(ArgumentError, match="batch_size"):
        AttributedGraph("digits", batch_size=batch_size)


def test_hyper_parameters_are_saved_and_do_not_clash_with_the_model(tmp_path):
    assert dict(AttributedGraph("digits", batch_size=256).hparams) == {
        "dataset": "digits",
        "root": None,
        "n_neighbors": None,
        "batch_size": 256,
        "sparse": None,
    }
    runner = trainer(
        tmp_path, max_epochs=1, logger=L.pytorch.loggers.CSVLogger(tmp_path), log_every_n_steps=1
    )
    probe = Probe(3)
    probe.save_hyperparameters({"batch_size": 99})
    runner.fit(probe, toy())
