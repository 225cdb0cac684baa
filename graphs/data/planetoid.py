"""The features of Citeseer from the Planetoid files, which are pickles of Python 2.

A pickle may call anything. This reader knows the five names that a SciPy matrix needs, and refuses
a file with any other.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from common.errors import DataError


class _Matrix:
    """Takes the attributes of a pickled ``scipy.sparse.csr_matrix``."""

    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    _shape: tuple[int, int]


def _new(kind: type, base: type, state: None) -> _Matrix:
    """What ``copy_reg._reconstructor`` makes here, whatever it is asked for."""
    return _Matrix()


_ALLOWED = {
    ("copy_reg", "_reconstructor"): _new,
    ("__builtin__", "object"): object,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("scipy.sparse.csr", "csr_matrix"): _Matrix,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]


def read_matrix(path: Path) -> sp.csr_array:
    """A sparse matrix from a Python 2 pickle, without running anything that the file names.

    Raises:
        DataError: the file is no such pickle, is damaged, or asks for more than a matrix.
    """
    try:
        found = _Unpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        if not isinstance(found, _Matrix):
            raise TypeError(f"it holds a {type(found).__name__}")
        matrix = sp.csr_array((found.data, found.indices, found.indptr), shape=found._shape)
        matrix.check_format(full_check=True)
    except Exception as error:  # a damaged pickle fails in any way
        raise DataError(f"{path} is not a pickled sparse matrix: {error}") from error
    return matrix


def planetoid_features(
    allx: Path, tx: Path, test_index: Path, *, shape: tuple[int, int]
) -> np.ndarray:
    """``(n, d)`` float32 features in the order of the node ids.

    ``allx`` holds the first nodes and ``tx`` the test nodes, whose ids, in the order of its rows,
    are the lines of ``test_index``. An id after ``allx`` that is not listed gets a zero row.

    Raises:
        DataError: a file is damaged, or together they do not make features of that ``shape``.
    """
    known, tested = read_matrix(allx), read_matrix(tx)
    try:
        ids = np.array(test_index.read_text().split(), dtype=np.int64)
    except (OSError, ValueError, OverflowError) as error:
        raise DataError(f"{test_index} is not a list of node ids: {error}") from error
    n, dim = shape
    first = known.shape[0]
    if (
        not known.shape[1] == tested.shape[1] == dim
        or len(ids) != tested.shape[0]
        or len(np.unique(ids)) != len(ids)
        or ids.min(initial=first) < first
        or ids.max(initial=first - 1) != n - 1
    ):
        raise DataError(f"{allx}, {tx} and {test_index} do not make {n} x {dim} features together")
    features = np.zeros(shape, dtype=np.float32)
    features[:first] = known.toarray()
    features[ids] = tested.toarray()
    return features
