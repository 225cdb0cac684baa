"""Files that are there as a whole or not at all. The one place that writes them.

Whoever writes says which :class:`ClustrastError` a full or read-only disk is: a ``DataError`` for
data sets, a ``RunError`` for run folders.
"""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import ClustrastError

TEMPORARY = ".tmp"


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def disk(path: Path, error: type[ClustrastError], remedy: str = "") -> Iterator[None]:
    """Raises an OSError of the block as ``error`` that names ``path`` and the ``remedy``."""
    try:
        yield
    except OSError as failure:
        message = f"cannot write {path}: {failure.strerror or failure}"
        raise error(f"{message}; {remedy}" if remedy else message) from failure


@contextmanager
def replacing(path: Path, error: type[ClustrastError]) -> Iterator[Path]:
    """A temporary path that becomes ``path`` if the block succeeds and vanishes if it does not.

    It lies in the folder of ``path``, which is made, ends with ``TEMPORARY`` and is no one else's.

    Raises:
        ClustrastError: ``error``, if the disk is full or cannot be written.

    Example:
        >>> import tempfile
        >>> from common.errors import RunError
        >>> folder = Path(tempfile.mkdtemp())
        >>> with replacing(folder / "numbers.txt", RunError) as temporary:
        ...     _ = temporary.write_text("1 2 3")
        >>> [path.name for path in folder.iterdir()]
        ['numbers.txt']
    """
    unique = f"{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f".{path.name}.{unique}{TEMPORARY}")
    try:
        with disk(path, error):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            put_in_place(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def put_in_place(temporary: Path, path: Path) -> None:
    """Renames a finished file once its bytes are on the disk, over what has the name."""
    with temporary.open("r+b") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_text(path: Path, text: str, error: type[ClustrastError]) -> None:
    """Writes a file that is there as a whole or not at all, see :func:`replacing`."""
    with replacing(path, error) as temporary:
        temporary.write_text(text, encoding="utf-8")
