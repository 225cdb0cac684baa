"""SHA-256 of arrays."""

import hashlib
from typing import TYPE_CHECKING

from common.errors import require

if TYPE_CHECKING:
    import numpy as np


def array_sha256(*arrays: "np.ndarray") -> str:
    """Hexadecimal SHA-256 of arrays: their types, shapes and values in C order, little endian.

    Raises:
        ArgumentError: an array holds Python objects, whose bytes are addresses.

    Example:
        >>> import numpy as np
        >>> array_sha256(np.eye(2)) == array_sha256(np.eye(2)[:, ::-1])
        False
    """
    digest = hashlib.sha256()
    for array in arrays:
        require(not array.dtype.hasobject, "arrays", array.dtype, "of a type without objects")
        little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{little_endian.dtype.str}{little_endian.shape}".encode())
        digest.update(little_endian.tobytes())
    return digest.hexdigest()
