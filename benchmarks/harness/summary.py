"""Means over seeds beside the published values."""

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.harness.plan import Cell
from benchmarks.harness.store import Record
from benchmarks.harness.table import PROJECT, Table

PUBLISHED = PROJECT / "benchmarks" / "published"
SELECTIONS = ("last", "oracle")


@dataclass(frozen=True)
class Published:
    """A published value, in percent.

    Args:
        selection: ``last``, ``oracle`` (best epoch, chosen with labels) or ``unstated``.
    """

    mean: float
    std: float | None
    selection: str
    source: str


@dataclass(frozen=True)
class Entry:
    """One number of our table, in percent: a row, a data set, a metric, a selection.

    Args:
        values: of the seeds that are there.
        missing: how many seeds are not.
    """

    row: str
    dataset: str
    metric: str
    selection: str
    values: tuple[float, ...]
    missing: int = 0
    published: Published | None = None

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Population standard deviation."""
        return statistics.pstdev(self.values) if self.values else None

    @property
    def difference(self) -> float | None:
        """Ours minus the published mean, where that is a score of the same selection."""
        if self.mean is None or self.published is None:
            return None
        if self.published.selection not in (self.selection, "unstated"):
            return None
        return self.mean - self.published.mean


@dataclass(frozen=True)
class Summary:
    """A reproduction: its cells, the records that are there, and the entries of the table.

    Args:
        cells: those of the rows that are shown.
        records: key to record.
    """

    table: Table
    scale: str
    rows: Sequence[str]
    datasets: Sequence[str]
    cells: Sequence[Cell]
    records: Mapping[str, Record]
    entries: Mapping[tuple[str, str, str, str], Entry] = field(default_factory=dict)

    def entry(self, row: str, dataset: str, metric: str, selection: str) -> Entry:
        return self.entries[row, dataset, metric, selection]

    def records_of(self, row: str, dataset: str) -> list[Record]:
        """By seed."""
        keys = [cell.key for cell in self.cells if (cell.row, cell.dataset) == (row, dataset)]
        return [self.records[key] for key in keys if key in self.records]

    def seeds_of(self, dataset: str) -> int:
        return len({cell.seed for cell in self.cells if cell.dataset == dataset})

    @property
    def finished(self) -> list[Record]:
        return [self.records[cell.key] for cell in self.cells if cell.key in self.records]

    @property
    def complete(self) -> bool:
        return len(self.finished) == len(self.cells)

    def published_only(self, dataset: str) -> dict[str, dict[str, Published]]:
        """Rows that were published but are not ours: row to metric to value."""
        others: dict[str, dict[str, Published]] = {}
        for (row, of, metric), value in read_published(self.table).items():
            if of == dataset and metric in self.table.metrics and row not in self._own:
                others.setdefault(row, {})[metric] = value
        return others

    @property
    def _own(self) -> set[str]:
        return {row.name for row in self.table.rows}


def summarise(
    table: Table,
    scale: str,
    rows: Sequence[str],
    datasets: Sequence[str],
    cells: Sequence[Cell],
    records: Mapping[str, Record],
) -> Summary:
    """Averages what is there over the seeds, for all rows, data sets, metrics and selections."""
    shown = [cell for cell in cells if cell.row in rows]
    published = read_published(table)
    entries = {}
    for row in rows:
        for dataset in datasets:
            keys = [cell.key for cell in shown if (cell.row, cell.dataset) == (row, dataset)]
            found = [records[key] for key in keys if key in records]
            for metric in table.metrics:
                for selection in SELECTIONS:
                    entries[row, dataset, metric, selection] = Entry(
                        row=row,
                        dataset=dataset,
                        metric=metric,
                        selection=selection,
                        values=tuple(100 * r["metrics"][selection][metric] for r in found),
                        missing=len(keys) - len(found),
                        published=published.get((row, dataset, metric)),
                    )
    return Summary(table, scale, rows, datasets, shown, records, entries)


def read_published(table: Table) -> dict[tuple[str, str, str], Published]:
    """Published values of a table by row, data set and metric."""
    if table.published is None:
        return {}
    with (PUBLISHED / table.published).open(newline="", encoding="utf-8") as file:
        return {
            (line["row"], line["dataset"], line["metric"]): Published(
                mean=float(line["mean"]),
                std=float(line["std"]) if line["std"] else None,
                selection=line["selection"],
                source=line["source"],
            )
            for line in csv.DictReader(file)
        }
