"""Unpacking that stays inside its folder."""

import lzma
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from common.errors import DataError

DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,  # an encrypted or unsupported zip
)


def unpack(archive: Path, folder: Path) -> Path:
    """Unpacks a ``.zip`` or ``.tar[.gz|.bz2|.xz]`` file as ``folder``, all or nothing.

    Args:
        archive: the file.
        folder: a folder that does not exist yet; it appears when everything is unpacked.

    Returns:
        ``folder``.

    Raises:
        DataError: not an archive, damaged, or a member lies outside the folder or is no plain file.
    """
    if folder.exists():
        raise DataError(f"{folder} exists; {archive} is not unpacked over it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        unpacked = Path(scratch) / folder.name
        unpacked.mkdir()
        try:
            if zipfile.is_zipfile(archive):
                _unzip(archive, unpacked)
            else:
                with tarfile.open(archive) as tar:
                    for member in tar:
                        _refuse_outside(archive, member.name)
                        if not (member.isfile() or member.isdir()):
                            raise DataError(f"{archive}: {member.name} is not a plain file")
                        tar.extract(member, unpacked, filter="data")
        except DAMAGE as error:
            raise DataError(f"cannot unpack {archive}: {error}") from error
        shutil.move(unpacked, folder)
    return folder


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        for name in file.namelist():
            _refuse_outside(archive, name)
        file.extractall(folder)


def _refuse_outside(archive: Path, name: str) -> None:
    paths = PurePosixPath(name), PureWindowsPath(name)
    if any(path.is_absolute() or path.drive or ".." in path.parts for path in paths):
        raise DataError(f"{archive}: {name} lies outside the folder it is unpacked to")
