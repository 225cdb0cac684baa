"""A run folder: records, checkpoints and projections of cells. Whatever has its name is whole.

Layout::

    cells/<data set>/<row>-seed<k>-<key>.json    one record a finished cell
    checkpoints/<key>.ckpt                       of cells that others start from
    projections/<key>.npz                        of the first seed's embeddings, for the 2-D plot
    logs/<data set>/<row>-seed<k>-<key>.log      what the cell's process printed
"""

import hashlib
import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from filelock import FileLock, Timeout

from common import files
from common.errors import RunError
from common.files import TEMPORARY, file_sha256

if TYPE_CHECKING:
    from benchmarks.harness.plan import Cell

Record = dict[str, Any]

FORMAT = 1

disk = partial(files.disk, error=RunError)
replacing = partial(files.replacing, error=RunError)
write_text = partial(files.write_text, error=RunError)


class RunStore:
    """The records of a run folder by key, under a lock that keeps a second reproduction out.

    Args:
        folder: made if it does not exist.

    Attributes:
        records: finished cells, key to record.
        damaged: records that could not be trusted; each was renamed and will be recomputed.

    Raises:
        RunError: the folder cannot be used, or another reproduction is using it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.damaged: list[Path] = []
        with disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.lock = self._lock()
            self._clear_temporaries()
            self.records = self._load()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._clear_temporaries()
        self.lock.release()

    def _lock(self) -> FileLock:
        lock = FileLock(self.folder / ".lock")
        holder = self.folder / ".pid"
        try:
            lock.acquire(timeout=0)
        except Timeout:
            pid = holder.read_text() if holder.is_file() else "unknown"
            raise RunError(
                f"another reproduction (process {pid}) is writing to {self.folder}; "
                "wait for it, or choose another folder with --out"
            ) from None
        holder.write_text(str(os.getpid()))
        return lock

    def _clear_temporaries(self) -> None:
        for path in self.folder.rglob(f".*{TEMPORARY}"):
            path.unlink(missing_ok=True)

    def _load(self) -> dict[str, Record]:
        records, broken = read_records(self.folder)
        for path in broken:
            renamed = free_name(path.with_name(f"{path.name}.damaged"))
            path.rename(renamed)
            self.damaged.append(renamed)
        return records

    def save(self, cell: "Cell", record: Record) -> None:
        write_record(self.folder, cell, record)
        self.records[cell.key] = record

    def has_checkpoint(self, key: str) -> bool:
        """Whether the checkpoint that the record of ``key`` speaks of is there, unchanged."""
        path = checkpoint_path(self.folder, key)
        expected = self.records.get(key, {}).get("checkpoint_sha256")
        return expected is not None and path.is_file() and file_sha256(path) == expected

    def reuse(self, other: Path, cells: list["Cell"]) -> int:
        """Takes over records of ``cells``, and what belongs to them, from another run folder."""
        if not (other / "cells").is_dir():
            raise RunError(f"--reuse {other} is not a run folder: it has no cells")
        found, broken = read_records(other)
        self.damaged += broken
        taken = [cell for cell in cells if cell.key in found and cell.key not in self.records]
        for cell in taken:
            for place in (checkpoint_path, projection_path):
                if (source := place(other, cell.key)).is_file():
                    with replacing(place(self.folder, cell.key)) as temporary:
                        shutil.copyfile(source, temporary)
            self.save(cell, found[cell.key])
        return len(taken)


def record_path(folder: Path, cell: "Cell") -> Path:
    return folder / "cells" / f"{cell.path}.json"


def write_record(folder: Path, cell: "Cell", record: Record) -> None:
    lines = [f" {json.dumps(key)}: {in_lines(value)}" for key, value in sealed(record).items()]
    write_text(record_path(folder, cell), "{\n" + ",\n".join(lines) + "\n}\n")


def in_lines(value: Any) -> str:
    """JSON of a value, a list of objects with one line for each.

    Example:
        >>> print(in_lines([{"acc": 0.5, "sizes": [2, 2]}, {"acc": 0.75, "sizes": [1, 3]}]))
        [
          {"acc": 0.5, "sizes": [2, 2]},
          {"acc": 0.75, "sizes": [1, 3]}
         ]
    """
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return "[\n" + ",\n".join(f"  {json.dumps(item)}" for item in value) + "\n ]"
    return json.dumps(value)


def log_path(folder: Path, cell: "Cell") -> Path:
    return folder / "logs" / f"{cell.path}.log"


def checkpoint_path(folder: Path, key: str) -> Path:
    return folder / "checkpoints" / f"{key}.ckpt"


def projection_path(folder: Path, key: str) -> Path:
    return folder / "projections" / f"{key}.npz"


def read_records(folder: Path) -> tuple[dict[str, Record], list[Path]]:
    """The records of a run folder by key, and the files that are not whole records."""
    records: dict[str, Record] = {}
    broken = []
    for path in sorted(folder.glob("cells/*/*.json")):
        try:
            record = json.loads(path.read_bytes())
            if record != sealed(record):
                raise ValueError("its contents do not match its checksum")
            records[record["key"]] = record
        except (ValueError, KeyError, TypeError, AttributeError):
            broken.append(path)
    return records, broken


def sealed(record: Record) -> Record:
    """The record with the checksum of its contents."""
    contents = {key: value for key, value in record.items() if key != "sha256"}
    return contents | {"sha256": digest(contents)}


def digest(value: Any) -> str:
    """SHA-256 of a value as canonical JSON.

    Example:
        >>> digest({"a": 1, "b": 2.5}) == digest({"b": 2.5, "a": 1})
        True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def free_name(path: Path) -> Path:
    """``path``, or with a number behind it if there is such a file."""
    candidates = (path.with_name(f"{path.name}{n}") for n in range(2, 1_000_000))
    return path if not path.exists() else next(name for name in candidates if not name.exists())
