"""Reads the graphs of :mod:`graphs.data.specs` from the data root."""

import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch_geometric.data import Data

from common.data.checksum import array_sha256
from common.data.spec import dataset_folder, locate
from common.errors import ArgumentError, DataError
from common.neighbors import knn_graph
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
    if spec.embedded:
        return _digits(spec, n_neighbors)
    if spec.edges is None or n_neighbors not in spec.edges:
        raise ArgumentError(_no_such_graph(spec, n_neighbors))

    if spec.packed and (dataset_folder(spec, root) / spec.packed).is_file():
        x, y, edges = _read_packed(spec, root, n_neighbors)
    else:
        x, y, edges = _read_text(spec, root, n_neighbors)
    try:
        graph = attributed_graph(x, edges.T, y, name=name)
    except ArgumentError as error:
        raise DataError(f"{name}: {error}") from error
    _check(spec, graph, n_neighbors, dataset_folder(spec, root))
    return graph


def _digits(spec: GraphSpec, n_neighbors: int | None) -> Data:
    assert n_neighbors is not None
    pixels, y = load_digits(return_X_y=True)
    x = torch.from_numpy(pixels / 16).float()
    return attributed_graph(x, knn_graph(x, n_neighbors), y, name=spec.name)


def _read_packed(
    spec: GraphSpec, root: str | Path | None, n_neighbors: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    assert spec.packed is not None
    path = locate(spec, spec.packed, root)
    try:
        with np.load(path, allow_pickle=False) as pack:
            y = pack["y"]
            edges = pack[f"knn{n_neighbors}_raw" if n_neighbors else "edges_raw"]
            x = _read_features(spec, root) if spec.packed_lacks else pack["x"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not the pack of {spec.name}: {error}") from error
    if x.dtype.kind == "f":
        x = x.astype(np.float64).round(TEXT_DECIMALS)
    return x, y, edges


def _read_text(
    spec: GraphSpec, root: str | Path | None, n_neighbors: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    y = _read_numbers(locate(spec, f"{spec.stem}_label.txt", root), np.int64)
    edges = _read_numbers(locate(spec, spec.graph_file(n_neighbors), root), np.int64)
    return _read_features(spec, root), y.ravel(), edges


def _read_features(spec: GraphSpec, root: str | Path | None) -> np.ndarray:
    if spec.name == "citeseer":
        parts = (locate(spec, f"ind.citeseer.{p}", root) for p in ("allx", "tx", "test.index"))
        return planetoid_features(*parts)
    return _read_numbers(locate(spec, f"{spec.stem}.txt", root), np.float64)


def _read_numbers(path: Path, dtype: type[np.generic]) -> np.ndarray:
    """A matrix from a text file with one row a line, separated by white space."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # an empty file
            return np.loadtxt(path, dtype=dtype, ndmin=2)
    except (OSError, ValueError, UserWarning) as error:
        raise DataError(f"{path} is not a table of numbers: {error}") from error


def _check(spec: GraphSpec, graph: Data, n_neighbors: int | None, folder: Path) -> None:
    assert spec.edges is not None
    found = {
        "nodes": graph.x.shape[0],
        "features": graph.x.shape[1],
        "classes": graph.n_clusters,
        "edges": graph.edge_index.shape[1] // 2,
    }
    expected = {
        "nodes": spec.n,
        "features": spec.dim,
        "classes": spec.n_clusters,
        "edges": spec.edges[n_neighbors],
    }
    wrong = [
        f"{found[what]} {what}, not {expected[what]}"
        for what in expected
        if found[what] != expected[what]
    ]
    remedy = f"remove {folder} and run `clustrast datasets fetch {spec.name}`"
    if wrong:
        raise DataError(f"{spec.name}: the files hold {', '.join(wrong)}; {remedy}")
    if spec.features_sha256 and array_sha256(graph.x.numpy()) != spec.features_sha256:
        raise DataError(f"{spec.name}: the features are not the published ones; {remedy}")


def _no_such_graph(spec: GraphSpec, n_neighbors: int | None) -> str:
    if spec.n_neighbors is None:
        return f"n_neighbors must be None for {spec.name}, whose graph is given, got {n_neighbors}"
    choices = ", ".join(str(key) for key in spec.edges or ())
    return f"n_neighbors must be one of {choices} for {spec.name}, got {n_neighbors}"
