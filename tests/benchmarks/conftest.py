"""Reproductions without training: records come from a formula, everything else is real."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.harness import plan
from benchmarks.harness import reproduce as reproduction
from benchmarks.harness.plan import Cell
from benchmarks.harness.schedule import Done, Epoch, Failed, Started
from benchmarks.harness.store import FORMAT, Record, checkpoint_path, replacing
from common.files import file_sha256
from tests.benchmarks.tiny import FROZEN, tiny_table

METRICS = ("acc", "nmi", "ari", "f1")


def made_up(cell: Cell, folder: Path) -> Record:
    """A record in the shape of a real one; a pure function of the cell."""
    base = int(hashlib.sha256(f"{cell.row}{cell.dataset}{cell.seed}".encode()).hexdigest()[:4], 16)
    last = 0.5 + base / 2**18
    history = [{**dict.fromkeys(METRICS, last + gain), "sizes": [30, 30]} for gain in (0, 0.1, 0)]
    record: Record = {
        "format": FORMAT,
        "key": cell.key,
        "row": cell.row,
        "dataset": cell.dataset,
        "seed": cell.seed,
        "metrics": {
            "last": dict.fromkeys(METRICS, last),
            "oracle": dict.fromkeys(METRICS, last + 0.1),
        },
        "history": history,
        "data_checksum": cell.data_checksum,
        "code_version": cell.code_version,
        "machine": {"cpu": "none", "cores": 1, "threads": 1, "system": "none"},
        "device": "cpu",
        "versions": {},
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 1.0,
    }
    if cell.keep_checkpoint:
        path = checkpoint_path(folder, cell.key)
        with replacing(path) as temporary:
            temporary.write_text(cell.key)
        record["checkpoint_sha256"] = file_sha256(path)
    return record


class Instant:
    """Stands in for the worker processes.

    Attributes:
        computed: names of the cells that were computed.
        broken: cells that fail.
        before: called before each cell.
    """

    def __init__(self) -> None:
        self.computed: list[str] = []
        self.broken: set[str] = set()
        self.before: Callable[[Cell], None] = lambda cell: None

    def __call__(self, cells, folder, **_):
        for cell in cells:
            yield Started(cell)
            self.before(cell)
            yield Epoch(cell, 1, 3)
            if str(cell) in self.broken:
                yield Failed(cell, "broken on purpose")
                continue
            self.computed.append(str(cell))
            yield Done(cell, made_up(cell, folder))


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> Instant:
    """Replaces the worker processes."""
    fake = Instant()
    monkeypatch.setattr(reproduction, "run", fake)
    return fake


@pytest.fixture(autouse=True)
def frozen_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that do not follow edits of the sources while the tests run."""
    monkeypatch.setattr(plan, "code_version", lambda *_: FROZEN)


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves the seconds that drawing takes."""
    monkeypatch.setattr(reproduction.plots, "write_plots", lambda *_: None)


@pytest.fixture
def table():
    return tiny_table()
