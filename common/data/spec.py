"""What a data set is: its files, where they come from, and where they lie."""

import os
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from common.errors import DataError, require
from common.files import file_sha256


@dataclass(frozen=True)
class RemoteFile:
    """One file of a data set.

    Args:
        name: file name in the data set's folder; with "/" at the end a folder, brought by hand.
        url: download address; None if the file can only be brought by hand.
        sha256: of the file's bytes; None where the publisher's bytes are not known, and the checks
            of the loader are all there is.
        source: where it comes from, in words that help when there is no ``url``.
    """

    name: str
    url: str | None
    sha256: str | None
    source: str


@dataclass(frozen=True)
class DatasetSpec:
    """A data set, as ``clustrast datasets`` lists it.

    Args:
        name: its name everywhere, and that of its folder in the data root.
        domain: the package that loads it.
        title: one line.
        task: what it is used for.
        licence: terms of use, as far as the publisher states them.
        citation: whom to cite.
        size: of the download.
        files: everything a full download brings.
        packed: a single file that may stand in the folder instead of ``files``.
        embedded: shipped inside a dependency; there is nothing to download.
        homepage: of the publisher.
        packed_sha256: of the bytes of ``packed``.
        packed_lacks: names of those ``files`` that are needed even where ``packed`` is.
    """

    name: str
    domain: str
    title: str
    task: str
    licence: str
    citation: str
    size: str
    files: tuple[RemoteFile, ...] = ()
    packed: str | None = None
    embedded: bool = False
    homepage: str = ""
    packed_sha256: str | None = None
    packed_lacks: tuple[str, ...] = ()


def data_root() -> Path:
    """The folder of all data sets: ``$CLUSTRAST_DATA``, else ``clustrast`` in the user's cache."""
    chosen = os.environ.get("CLUSTRAST_DATA")
    return Path(chosen).expanduser() if chosen else user_cache_path("clustrast", appauthor=False)


def dataset_folder(spec: DatasetSpec, root: str | Path | None = None) -> Path:
    """``<root>/<name>``; ``root`` defaults to :func:`data_root`."""
    return (data_root() if root is None else Path(root).expanduser()) / spec.name


def missing(spec: DatasetSpec, root: str | Path | None = None) -> list[RemoteFile]:
    """The files of a data set that are not in its folder; none for an embedded data set."""
    folder = dataset_folder(spec, root)
    return [file for file in needed(spec, folder) if not is_there(folder, file)]


def locate(spec: DatasetSpec, name: str, root: str | Path | None = None) -> Path:
    """Path of one file of a data set, after a check of its SHA-256 where that is known.

    Raises:
        ArgumentError: the data set has no file of that name.
        DataError: the file is missing or damaged; says which, where it belongs, and how to get it.
    """
    checksums = {file.name: file.sha256 for file in spec.files}
    if spec.packed:
        checksums[spec.packed] = spec.packed_sha256
    require(name in checksums, f"a file of {spec.name}", name, f"one of {', '.join(checksums)}")
    path = dataset_folder(spec, root) / name
    if not path.is_file():
        raise DataError(f"{spec.name}: {path} is missing; {how_to_get(spec, name)}")
    verify(path, checksums[name], how_to_get(spec, name))
    return path


def verify(path: Path, sha256: str | None, remedy: str) -> None:
    """Raises a DataError that ends with ``remedy`` if the file is not the expected one."""
    if sha256 is not None and (found := _sha256(path)) != sha256:
        raise DataError(
            f"{path} is damaged or incomplete: its SHA-256 is {found}, not {sha256}; {remedy}"
        )


def how_to_get(spec: DatasetSpec, name: str) -> str:
    """What the user does about a missing or damaged file."""
    command = f"`clustrast datasets fetch {spec.name}`"
    if name == spec.packed:
        return f"restore it, or delete it and run {command}"
    by_hand = {file.name: file.source for file in spec.files if file.url is None}
    if name in by_hand:
        return f"it has to be brought by hand: {by_hand[name]}"
    return f"get it with {command}"


def is_there(folder: Path, file: RemoteFile) -> bool:
    """Whether a folder has the file, or the folder that it stands for."""
    path = folder / file.name
    return path.is_dir() if file.name.endswith("/") else path.is_file()


def is_intact(path: Path, sha256: str | None) -> bool:
    """Whether the file is there with the expected bytes, as far as these are known."""
    return path.is_file() and (sha256 is None or _sha256(path) == sha256)


def has_pack(spec: DatasetSpec, folder: Path) -> bool:
    """Whether the folder holds a pack, which stands for the files that it contains."""
    return spec.packed is not None and (folder / spec.packed).is_file()


def needed(spec: DatasetSpec, folder: Path) -> tuple[RemoteFile, ...]:
    """The files that the folder must hold: all, or what a pack that is there does not contain."""
    if has_pack(spec, folder):
        return tuple(file for file in spec.files if file.name in spec.packed_lacks)
    return spec.files


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
