"""Downloads that resume, are verified, and appear under their name only when whole."""

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from common.data.spec import (
    DatasetSpec,
    RemoteFile,
    dataset_folder,
    has_pack,
    how_to_get,
    is_intact,
    is_there,
    locate,
    needed,
    verify,
)
from common.errors import DataError
from common.files import disk, put_in_place

ATTEMPTS = 3
TIMEOUT = 30.0
PAUSE = 1.0
CHUNK = 1 << 16
GONE = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.GONE}


class _Interrupted(Exception):
    """The connection broke; what has arrived is kept and the next attempt goes on from there."""


class _Refused(_Interrupted):
    """The server answered that the file cannot be had; another attempt gets the same answer."""


def fetch(
    spec: DatasetSpec, root: str | Path | None = None, *, progress: bool = True
) -> list[Path]:
    """Brings those files of a data set that are missing or damaged.

    A file arrives as ``NAME.part``, is checked against its SHA-256 and then renamed, so that a file
    under its own name is whole. An interrupted download leaves the part, and the next call goes on
    from there if the server knows how and the checksum is known, which tells whether the ends fit.
    A damaged file is replaced only by a verified one. Two processes that fetch the same data set
    wait for each other.

    Args:
        spec: the data set; an embedded one needs nothing.
        root: data root; default :func:`common.data.data_root`.
        progress: show a progress bar where the output is a terminal.

    Returns:
        The paths of the files that this call brought.

    Raises:
        DataError: the pack of the data set is damaged, the folder cannot be written, or a file
            cannot be downloaded (offline, not found, wrong bytes, disk full) or has to be brought
            by hand. Names every such file; the others are in place.
    """
    if spec.embedded:
        return []
    folder = dataset_folder(spec, root)
    if spec.packed and has_pack(spec, folder):
        locate(spec, spec.packed, root)
    brought: list[Path] = []
    failed: list[str] = []
    lacking = _lacking(needed(spec, folder), folder)
    with _exclusive(folder) if any(file.url for file in lacking) else nullcontext():
        for file in _lacking(lacking, folder):  # another process may have brought some
            try:
                brought.append(_bring(spec, file, folder / file.name, progress))
            except DataError as error:
                failed.append(str(error))
    if failed:
        raise DataError(f"{spec.name}: {'; '.join(failed)}")
    return brought


def _lacking(files: Iterable[RemoteFile], folder: Path) -> list[RemoteFile]:
    def whole(file: RemoteFile) -> bool:
        unknown = file.sha256 is None
        return is_there(folder, file) and (unknown or is_intact(folder / file.name, file.sha256))

    return [file for file in files if not whole(file)]


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Makes the folder and keeps other fetching processes out of it."""
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".fetch.lock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _bring(spec: DatasetSpec, file: RemoteFile, path: Path, progress: bool) -> Path:
    if file.url is None:
        raise DataError(f"{path} is missing or damaged; {how_to_get(spec, file.name)}")
    part = path.with_name(f"{path.name}.part")
    again = f"try again with `clustrast datasets fetch {spec.name}`"
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _transfer(file.url, part, progress, verifiable=file.sha256 is not None)
            break
        except _Interrupted as error:
            if attempt == ATTEMPTS or isinstance(error, _Refused):
                raise DataError(
                    f"cannot download {file.url} ({error}); it belongs at {path}; {again}"
                ) from error
            time.sleep(PAUSE * attempt)
    try:
        verify(part, file.sha256, f"it is thrown away, {again}")
    except DataError:
        part.unlink()
        raise
    with _writing(path):
        put_in_place(part, path)
    return path


def _transfer(url: str, part: Path, progress: bool, *, verifiable: bool) -> None:
    """Appends to ``part`` what it lacks of the file at ``url``.

    Without a checksum nothing tells whether an old part and new bytes are of the same file, or
    whether a body of unknown length is whole: then the part is written anew, and the length asked.
    """
    start = part.stat().st_size if verifiable and part.is_file() else 0
    headers = {"User-Agent": "clustrast", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if start and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            if error.headers.get("Content-Range") == f"bytes */{start}":
                return
            part.unlink()
        elif error.code in GONE:
            raise _Refused(f"{error.code} {error.reason}") from error
        raise _Interrupted(f"{error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise _Interrupted(getattr(error, "reason", None) or error) from error

    with response:
        if not _continues(response, start):
            start = 0
        whole = None if response.length is None else start + response.length
        if whole is None and not verifiable:
            raise _Refused("neither its length nor its checksum is known")
        with _writing(part), part.open("ab" if start else "wb") as out, _bar(progress) as bar:
            task = bar.add_task(part.stem, total=whole, completed=start)
            while chunk := _read(response):
                out.write(chunk)
                bar.advance(task, len(chunk))
            size = out.tell()
    if whole is not None and size != whole:
        raise _Interrupted(f"{size} of {whole} bytes arrived")


def _continues(response: HTTPResponse, start: int) -> bool:
    """Whether the server sends the rest that was asked for, not the whole file."""
    given = response.headers.get("Content-Range", "")
    return response.status == HTTPStatus.PARTIAL_CONTENT and given.startswith(f"bytes {start}-")


def _bar(progress: bool) -> Progress:
    console = Console(stderr=True)
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not (progress and console.is_terminal))


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read(CHUNK)
    except (OSError, HTTPException) as error:
        raise _Interrupted(str(error) or type(error).__name__) from error


def _writing(path: Path) -> AbstractContextManager[None]:
    remedy = "free space there, or set CLUSTRAST_DATA to a folder that can be written"
    return disk(path, DataError, remedy)
