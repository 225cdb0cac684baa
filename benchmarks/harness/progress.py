"""Progress on the terminal: one bar for all cells, one for each that runs; else plain lines."""

import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from benchmarks.harness.plan import Cell
from benchmarks.harness.schedule import Done, Epoch, Event, Failed, Started
from benchmarks.harness.store import Record, log_path


class Display:
    """Shows the events of a run.

    Args:
        console: where to; a terminal gets bars, anything else one line a cell.
        folder: of the run, which has the logs.
        total: number of cells.
        finished: of which so many are there already.
    """

    def __init__(self, console: Console, folder: Path, total: int, finished: int):
        self.console, self.folder = console, folder
        self.total, self.finished = total, finished
        self.started: dict[str, float] = {}
        self.bars: dict[str, TaskID] = {}
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.overall = self.progress.add_task(
            "[bold]all cells", total=total, completed=finished, unit="cells"
        )

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def show(self, event: Event) -> None:
        key = event.cell.key
        match event:
            case Started(cell):
                self.started[key] = time.monotonic()
                self.bars[key] = self.progress.add_task(str(cell), total=None, unit="epochs")
            case Epoch(_, done, total):
                self.progress.update(self.bars[key], completed=done, total=total)
            case Done(cell, record):
                self._end(cell)
                self._print(cell, scores(record))
            case Failed(cell, reason):
                self._end(cell)
                log = log_path(self.folder, cell)
                hint = f" (see {log})" if log.is_file() else ""
                self._print(cell, f"[red]failed[/red]: {escape(reason + hint)}")

    def _end(self, cell: Cell) -> None:
        if cell.key in self.bars:
            self.progress.remove_task(self.bars.pop(cell.key))
        self.finished += 1
        self.progress.update(self.overall, completed=self.finished)

    def _print(self, cell: Cell, outcome: str) -> None:
        seconds = time.monotonic() - self.started.get(cell.key, time.monotonic())
        count = f"{self.finished:{len(str(self.total))}}/{self.total}"
        line = rf"\[{count}] {cell}  {outcome}  [dim]{seconds:.0f} s[/dim]"
        self.console.print(line, highlight=False, soft_wrap=True)


def scores(record: Record) -> str:
    last = record["metrics"]["last"]
    return "  ".join(f"{name.upper()} {100 * value:.1f}" for name, value in last.items())
