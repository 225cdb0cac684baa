"""Downloads that resume, are verified, and appear under their name only when whole."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
    how_to_get,
    is_intact,
    needed,
    verify,
)
from common.errors import DataError

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
    from there if the server knows how. A damaged file is replaced only by a verified one. Two
    processes that fetch the same data set wait for each other.

    Args:
        spec: the data set; an embedded one needs nothing.
        root: data root; default :func:`common.data.data_root`.
        progress: show a progress bar where the output is a terminal.

    Returns:
        The paths of the files that this call brought.

    Raises:
        DataError: the folder cannot be written, a file cannot be downloaded (offline, not found,
            wrong bytes, disk full) or has to be brought by hand. What could be had is in place.
    """
    if spec.embedded:
        return []
    folder = dataset_folder(spec, root)
    brought = []
    if any(file.url for file in _lacking(spec, folder)):
        with _exclusive(folder):
            brought = [
                _download(spec, file.url, file.sha256, folder / file.name, progress)
                for file in _lacking(spec, folder)
                if file.url
            ]
    if by_hand := [file for file in _lacking(spec, folder) if not file.url]:
        raise DataError(
            "; ".join(
                f"{spec.name}: {folder / file.name} is missing or damaged, {how_to_get(spec, file)}"
                for file in by_hand
            )
        )
    return brought


def _lacking(spec: DatasetSpec, folder: Path) -> list[RemoteFile]:
    return [file for file in needed(spec, folder) if not is_intact(folder / file.name, file.sha256)]


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


def _download(spec: DatasetSpec, url: str, sha256: str | None, path: Path, progress: bool) -> Path:
    part = path.with_name(f"{path.name}.part")
    again = f"try again with `clustrast datasets fetch {spec.name}`"
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _transfer(url, part, progress)
            break
        except _Interrupted as error:
            if attempt == ATTEMPTS or isinstance(error, _Refused):
                raise DataError(
                    f"{spec.name}: cannot download {url} ({error}); it belongs at {path}; {again}"
                ) from error
            time.sleep(PAUSE * attempt)
    try:
        verify(part, sha256, f"it is thrown away, {again}")
    except DataError:
        part.unlink()
        raise
    with _writing(path):
        os.replace(part, path)
    return path


def _transfer(url: str, part: Path, progress: bool) -> None:
    """Appends to ``part`` what it lacks of the file at ``url``."""
    start = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "clustrast", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            if error.headers.get("Content-Range") == f"bytes */{start}":
                return
            part.unlink(missing_ok=True)
        elif error.code in GONE:
            raise _Refused(f"{error.code} {error.reason}") from error
        raise _Interrupted(f"{error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise _Interrupted(getattr(error, "reason", None) or error) from error

    with response:
        if not _continues(response, start):
            start = 0
        length = response.headers.get("Content-Length")
        whole = start + int(length) if length else None
        with _writing(part), part.open("ab" if start else "wb") as out, _bar(progress) as bar:
            task = bar.add_task(part.stem, total=whole, completed=start)
            while chunk := _read(response):
                out.write(chunk)
                bar.advance(task, len(chunk))
            out.flush()
            os.fsync(out.fileno())
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


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns a failure to write into an error that says what to do."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}; "
            "free space there, or set CLUSTRAST_DATA to a folder that can be written"
        ) from error
