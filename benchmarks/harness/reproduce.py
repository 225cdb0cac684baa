"""``clustrast reproduce``: plans, runs what is missing, shows the table."""

import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from benchmarks.harness import plots, render
from benchmarks.harness.plan import Cell, plan
from benchmarks.harness.progress import Display
from benchmarks.harness.provenance import cores
from benchmarks.harness.schedule import Done, Failed, run
from benchmarks.harness.store import RunStore
from benchmarks.harness.summary import SELECTIONS, summarise
from benchmarks.harness.table import Table
from benchmarks.names import one_of
from common.errors import ArgumentError

INTERRUPTED = 130


@dataclass(frozen=True)
class Options:
    """What ``clustrast reproduce`` was asked for; None stands for the table's own choice.

    Args:
        seeds: such as ``["5", "usps=2"]``: for all data sets, for one.
        reuse: other run folders whose records are taken over.
        selection: which epoch's scores come first, ``last`` or ``oracle``.
        record: copy the outcome into the project.
    """

    scale: str | None = None
    datasets: list[str] | None = None
    rows: list[str] | None = None
    seeds: Sequence[str] = ()
    jobs: int = 1
    out: Path | None = None
    reuse: Sequence[Path] = ()
    selection: str = "last"
    record: bool = False
    json: bool = False
    command: Sequence[str] = field(default_factory=lambda: ("clustrast", *sys.argv[1:]))


def reproduce(table: Table, options: Options) -> int:
    """Runs the cells of a table that are not recorded yet and writes its pages and plots.

    Returns:
        Exit status: 0 if every cell is there, 1 if one failed, 130 after Ctrl-C.

    Raises:
        ArgumentError: an unknown scale, data set or row; a recipe that cannot be read.
        DataError: a data set that is not there.
        RunError: the run folder cannot be used.
    """
    scale = table.choose_scale(options.scale)
    datasets = table.choose_datasets(scale, options.datasets)
    rows = table.choose_rows(options.rows)
    seeds = choose_seeds(options.seeds, datasets, table.scales[scale].seeds)
    one_of("selection", options.selection, SELECTIONS)
    if options.jobs < 1:
        raise ArgumentError(f"--jobs must be at least 1, got {options.jobs}")
    folder = options.out or Path("runs") / f"{table.name}-{scale}"
    command, recorded = shlex.join(options.command), shlex.join(portable(options.command))
    console = Console(stderr=True)

    with RunStore(folder) as store:
        try:
            with console.status("reading recipes and data sets"):
                cells = plan(table, scale, datasets, seeds, rows)
            for other in options.reuse:
                taken = store.reuse(other, cells)
                console.print(f"{taken} cells taken over from {other}", highlight=False)
            for path in store.damaged:
                console.print(f"damaged record, will be recomputed: {path}", highlight=False)
            failures = compute_missing(cells, store, options.jobs, recorded, console)
            summary = summarise(
                table, scale, [row.name for row in rows], datasets, cells, store.records
            )
            with console.status("writing tables and plots"):
                render.write_pages(summary, folder, options.selection, recorded)
                plots.write_plots(summary, folder)
        except KeyboardInterrupt:
            console.print(
                f"interrupted: {len(store.records)} finished cells are kept in {folder}; "
                f"the same command goes on from there: {command}",
                highlight=False,
                soft_wrap=True,
            )
            return INTERRUPTED
        if options.json:
            print(json.dumps(render.as_json(summary, folder), indent=1))
        else:
            render.show(summary, options.selection, Console())
        if options.record and summary.complete:
            console.print(f"recorded in {render.record(summary, folder)}", highlight=False)
        elif options.record:
            console.print("not recorded: cells are missing", highlight=False)
        console.print(f"run folder: {folder}", highlight=False, soft_wrap=True)
        return 1 if failures or not summary.complete else 0


def compute_missing(
    cells: Sequence[Cell], store: RunStore, jobs: int, command: str, console: Console
) -> list[Failed]:
    """Runs the cells without a record and saves each record as soon as it is there."""
    todo = to_compute(cells, store)
    failures = []
    if not todo:
        return []
    threads = max(1, cores() // jobs)
    events = run(todo, store.folder, jobs=jobs, threads=threads, command=command)
    total = len({cell.key for cell in cells})
    with closing(events), Display(console, store.folder, total, total - len(todo)) as display:
        for event in events:
            match event:
                case Done(cell, record):
                    store.save(cell, record)
                case Failed():
                    failures.append(event)
            display.show(event)
    return failures


def to_compute(cells: Sequence[Cell], store: RunStore) -> list[Cell]:
    """Cells without a record, and those with one whose checkpoint is needed but not there."""
    unique: dict[str, Cell] = {}
    for cell in cells:
        unique.setdefault(cell.key, cell)
    missing = {key for key in unique if key not in store.records}
    queue = list(missing)
    while queue:
        start = unique[queue.pop()].starts_from
        if start and start not in missing and not store.has_checkpoint(start):
            missing.add(start)
            queue.append(start)
    return [cell for key, cell in unique.items() if key in missing]


def portable(command: Sequence[str]) -> list[str]:
    """The command without the folders of this machine, as it is recorded.

    Example:
        >>> portable(["clustrast", "reproduce", "scgc", "--reuse", "a", "b", "--seeds", "5"])
        ['clustrast', 'reproduce', 'scgc', '--seeds', '5']
        >>> portable(["clustrast", "reproduce", "scgc", "--out=runs/mine"])
        ['clustrast', 'reproduce', 'scgc']
    """
    kept, dropping = [], False
    for word in command:
        if word.startswith("--"):
            dropping = word.split("=")[0] in ("--out", "--reuse")
        if not dropping:
            kept.append(word)
    return kept


def choose_seeds(given: Sequence[str], datasets: Sequence[str], default: int) -> dict[str, int]:
    """Number of seeds by data set.

    Example:
        >>> choose_seeds(["5", "usps=2"], ["acm", "usps"], default=10)
        {'acm': 5, 'usps': 2}
    """
    seeds = dict.fromkeys(datasets, default)
    special: dict[str, int] = {}
    for item in given:
        dataset, _, number = item.rpartition("=")
        if not number.isdecimal() or int(number) < 1:
            raise ArgumentError(f"--seeds must be N or NAME=N with N at least 1, got {item!r}")
        if dataset:
            special[one_of("data set", dataset, datasets)] = int(number)
        else:
            seeds = dict.fromkeys(datasets, int(number))
    return seeds | special
