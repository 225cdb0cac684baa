"""Reads the graphs of :mod:`graphs.data.specs` from the data root."""

import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from torch_geometric.data import Data

from common.data.checksum import array_sha256
from common.data.spec import dataset_folder, has_pack, how_to_get, locate, needed
from common.errors import ArgumentError, DataError, require, require_int
from graphs.data.graph import attributed_graph
from graphs.data.planetoid import planetoid_features
from graphs.data.specs import GraphSpec, find_spec

TEXT_DECIMALS = 6


def load_graph(name: str, root: str | Path | None = None, n_neighbors: int | None = None) -> Data:
    """One of the benchmark's graphs.

    Reads the packed file of the data set if that is in ``<root>/<name>``, the text files of SDCN
    otherwise; the result is the same.

    Args:
        name: a name in ``SPECS``.
        root: data root; default :func:`common.data.data_root`.
        n_neighbors: neighbours per node, for data sets that are no graphs by themselves: any number
            for digits, else one of the published 1, 3, 5 and 10; default as in the papers.

    Returns:
        As :func:`graphs.data.graph.attributed_graph` makes it.

    Raises:
        ArgumentError: unknown ``name``, or a graph that the data set does not have.
        DataError: a file is missing (says where it belongs and how to get it), damaged, or does not
            hold what the data set should.

    Example:
        >>> graph = load_graph("digits")
        >>> graph.x.shape, graph.edge_index.shape, graph.n_clusters
        (torch.Size([1797, 64]), torch.Size([2, 7768]), 10)
    """
    spec = find_spec(name)
    if n_neighbors is None:
        n_neighbors = spec.n_neighbors
    else:
        n_neighbors = require_int("n_neighbors", n_neighbors, 1)
    if spec.embedded:
        return _digits(spec, n_neighbors)
    published = f"one of {', '.join(map(str, spec.edges))} for {name}"
    given = f"None for {name}, whose graph is given"
    expected = given if spec.n_neighbors is None else published
    require(n_neighbors in spec.edges, "n_neighbors", n_neighbors, expected)

    read = _read_packed if has_pack(spec, dataset_folder(spec, root)) else _read_text
    x, y, edges = read(spec, root, n_neighbors)
    try:
        graph = attributed_graph(x, edges.T, y, name=name)
    except ArgumentError as error:
        raise DataError(f"{name}: {error}") from error
    _check(spec, graph, n_neighbors, root)
    return graph


def _digits(spec: GraphSpec, n_neighbors: int | None) -> Data:
    assert n_neighbors is not None
    pixels, y = load_digits(return_X_y=True)
    return attributed_graph(pixels / 16, y=y, n_neighbors=n_neighbors, name=spec.name)


def _read_packed(
    spec: GraphSpec, root: str | Path | None, n_neighbors: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    assert spec.packed is not None
    path = locate(spec, spec.packed, root)
    try:
        with np.load(path, allow_pickle=False) as pack:
            y = pack["y"]
            edges = pack[f"knn{n_neighbors}_raw" if n_neighbors else "edges_raw"]
            if spec.packed_lacks:
                x = _read_features(spec, root)
            else:
                x = pack["x"].astype(np.float64).round(TEXT_DECIMALS)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not the pack of {spec.name}: {error}") from error
    return x, y, edges


def _read_text(
    spec: GraphSpec, root: str | Path | None, n_neighbors: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    y = _read_numbers(locate(spec, spec.label_file, root), np.int64)
    edges = _read_numbers(locate(spec, spec.graph_file(n_neighbors), root), np.int64)
    return _read_features(spec, root), y.ravel(), edges


def _read_features(spec: GraphSpec, root: str | Path | None) -> np.ndarray:
    paths = [locate(spec, file, root) for file in spec.feature_files]
    if len(paths) > 1:
        return planetoid_features(*paths, shape=(spec.n, spec.dim))
    return _read_numbers(paths[0], np.float64)


def _read_numbers(path: Path, dtype: type[np.generic]) -> np.ndarray:
    """A matrix from a text file with one row a line, separated by white space."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # an empty file
            return np.loadtxt(path, dtype=dtype, ndmin=2)
    except (OSError, ValueError, UserWarning) as error:
        raise DataError(f"{path} is not a table of numbers: {error}") from error


def _check(spec: GraphSpec, graph: Data, n_neighbors: int | None, root: str | Path | None) -> None:
    features, labels, links = spec.feature_files, spec.label_file, spec.graph_file(n_neighbors)
    for files, what, found, expected in [
        (features, "nodes", graph.x.shape[0], spec.n),
        (features, "features", graph.x.shape[1], spec.dim),
        ((labels,), "classes", graph.n_clusters, spec.n_clusters),
        ((links,), "edges", graph.edge_index.shape[1] // 2, spec.edges[n_neighbors]),
    ]:
        if found != expected:
            raise _wrong(spec, files, root, f"{found} {what}, not {expected}")
    if spec.features_sha256 and array_sha256(graph.x.numpy()) != spec.features_sha256:
        raise _wrong(spec, features, root, "other features than the published ones")


def _wrong(
    spec: GraphSpec, files: tuple[str, ...], root: str | Path | None, contents: str
) -> DataError:
    """Says which of the files, or the pack in their stead, holds what it should not."""
    folder = dataset_folder(spec, root)
    read = [file for file in needed(spec, folder) if file.name in files]
    names = [file.name for file in read] or [spec.packed or ""]
    paths = ", ".join(str(folder / name) for name in names)
    remove = "remove that and " if read and read[0].url else ""
    return DataError(f"{spec.name}: {contents}, in {paths}; {remove}{how_to_get(spec, names[0])}")
