"""Where data sets lie, how they get there, and whether what lies there is what it should be.

Imports neither torch nor NumPy, so that listing the data sets is instant.
"""

from common.data.checksum import array_sha256
from common.data.download import fetch
from common.data.spec import DatasetSpec, RemoteFile, data_root, locate, missing

__all__ = [
    "DatasetSpec",
    "RemoteFile",
    "array_sha256",
    "data_root",
    "fetch",
    "locate",
    "missing",
]
