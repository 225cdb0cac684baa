"""SHA-256 of files and arrays."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def array_sha256(*arrays: "np.ndarray") -> str:
    """Hexadecimal SHA-256 of arrays: their types, shapes and values in C order, little endian.

    Example:
        >>> import numpy as np
        >>> array_sha256(np.eye(2)) == array_sha256(np.eye(2)[:, ::-1])
        False
    """
    digest = hashlib.sha256()
    for array in arrays:
        little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{little_endian.dtype.str}{little_endian.shape}".encode())
        digest.update(little_endian.tobytes())
    return digest.hexdigest()
