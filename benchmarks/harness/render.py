"""The table on the terminal, as a page, as CSV, as JSON."""

import csv
import io
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.harness.store import Record, disk, write_record, write_text
from benchmarks.harness.summary import SELECTIONS, Entry, Published, Summary
from benchmarks.harness.table import PROJECT

ROOM_FOR_TIMES = 90
RESULTS = PROJECT / "benchmarks" / "results"
NOTES = PROJECT / "benchmarks" / "notes"

HEADINGS = {
    "last": "Last epoch",
    "oracle": "Oracle: best epoch of each metric, chosen with labels",
}
MARKS = {"oracle": "†", "unstated": "‡"}
LEGEND = {
    "†": "published value of the best epoch, chosen with labels",
    "‡": "published without saying which epoch",
}
COLUMNS = (
    *("table", "scale", "dataset", "row", "metric", "selection", "mean", "std", "seeds", "missing"),
    *("published_mean", "published_std", "published_selection", "difference", "source"),
)
RECORDED = ("table.md", "table.csv", "bars.png", "curves.png")


def ours(entry: Entry, decimals: int = 2) -> str:
    """Mean ± population standard deviation in percent; says which seeds are missing.

    Example:
        >>> ours(Entry("SCGC*", "acm", "acc", "last", (90.0, 92.0), missing=1))
        '91.00 ± 1.00 (2/3 seeds)'
        >>> ours(Entry("SCGC*", "acm", "acc", "last", (), missing=3))
        'missing'
    """
    if entry.mean is None:
        return "missing"
    there = len(entry.values)
    partial = f" ({there}/{there + entry.missing} seeds)" if entry.missing else ""
    return f"{entry.mean:.{decimals}f} ± {entry.std:.{decimals}f}{partial}"


def theirs(published: Published, difference: float | None = None, decimals: int = 2) -> str:
    """A published value, marked if it was not of the last epoch, and how far ours is from it.

    Example:
        >>> theirs(Published(84.89, None, "oracle", "official run log"), -1.2)
        '84.89† (-1.20)'
    """
    mean = f"{published.mean:.{decimals}f}{MARKS.get(published.selection, '')}"
    return mean if difference is None else f"{mean} ({difference:+.{decimals}f})"


def lines_of(
    summary: Summary, dataset: str, selection: str, decimals: int
) -> Iterable[tuple[str, list[list[str]]]]:
    """The rows of a data set: name, and the lines of each metric's cell, published value second."""
    metrics = summary.table.metrics
    for row in summary.rows:
        entries = [summary.entry(row, dataset, metric, selection) for metric in metrics]
        yield (
            row,
            [
                [
                    ours(e, decimals),
                    *([theirs(e.published, e.difference, decimals)] if e.published else []),
                ]
                for e in entries
            ],
        )
    for row, values in summary.published_only(dataset).items():
        cells = [[theirs(values[m], None, decimals)] if m in values else [""] for m in metrics]
        yield f"{row} (published)", cells


def seconds_of(summary: Summary, row: str, dataset: str) -> str:
    """Mean wall time of a run, without that of the one it starts from."""
    seconds = [record["seconds"] for record in summary.records_of(row, dataset)]
    return duration(sum(seconds) / len(seconds)) if seconds else ""


def legend(summary: Summary) -> str:
    shown = {
        MARKS.get(published.selection)
        for dataset in summary.datasets
        for published in [
            *(e.published for e in summary.entries.values() if e.dataset == dataset),
            *(v for row in summary.published_only(dataset).values() for v in row.values()),
        ]
        if published
    }
    explained = [f"{mark} {text}" for mark, text in LEGEND.items() if mark in shown]
    if not shown:
        return ""
    return "; ".join(["Second line: published value (ours minus published)", *explained]) + "."


def ordered(selection: str) -> list[str]:
    """Both selections, the chosen one first."""
    return [selection, *(other for other in SELECTIONS if other != selection)]


def show(summary: Summary, selection: str, console: Console) -> None:
    """Prints the table, the chosen selection first."""
    for chosen in ordered(selection):
        for dataset in summary.datasets:
            table = RichTable(
                title=f"{summary.table.name} · {dataset} · {HEADINGS[chosen]}",
                caption=spread(summary, dataset),
                title_justify="left",
                caption_justify="left",
                title_style="bold" if chosen == selection else "dim",
                row_styles=() if chosen == selection else ("dim",),
                box=SIMPLE_HEAD,
                padding=(0, 1, 0, 0),
            )
            table.add_column("")
            times = ["a run"] if console.width >= ROOM_FOR_TIMES else []
            for heading in (*summary.table.metrics.values(), *times):
                table.add_column(heading, justify="right", no_wrap=True)
            for row, cells in lines_of(summary, dataset, chosen, decimals=1):
                texts = ["\n".join([cell[0], *map(dimmed, cell[1:])]) for cell in cells]
                table.add_row(row, *texts, *(seconds_of(summary, row, dataset) for _ in times))
            console.print(table)
    if legend(summary):
        console.print(legend(summary), style="dim", highlight=False)


def dimmed(text: str) -> str:
    return f"[dim]{text}[/dim]"


def spread(summary: Summary, dataset: str) -> str:
    n = summary.seeds_of(dataset)
    return f"percent, mean ± population standard deviation over {n} seed{'s' if n > 1 else ''}"


def markdown(summary: Summary, selection: str, command: str) -> str:
    """The page: tables, plots, and everything that says where the numbers come from."""
    table = summary.table
    parts = [f"# {table.title}", f"`clustrast reproduce {table.name} --scale {summary.scale}`"]
    if not summary.complete:
        parts.append(f"**Incomplete: {len(summary.finished)} of {len(summary.cells)} cells.**")
    if table.expect:
        parts.append(f"Expected: {table.expect}")
    for chosen in ordered(selection):
        parts.append(f"## {HEADINGS[chosen]}")
        for dataset in summary.datasets:
            parts += [f"### {dataset}", markdown_table(summary, dataset, chosen)]
    parts.append(f"Percent; mean ± population standard deviation. {legend(summary)}".strip())
    parts += ["## Plots", "![Scores](bars.png)", "![Scores during training](curves.png)"]
    parts += [f"![Embeddings, {d}]({embedding_plot(d, summary)})" for d in summary.datasets]
    parts += ["## How these numbers were made", provenance(summary, command)]
    notes = NOTES / f"{table.name}.md"
    if notes.is_file():
        parts += ["## Notes", notes.read_text(encoding="utf-8").strip()]
    return "\n\n".join(parts) + "\n"


def markdown_table(summary: Summary, dataset: str, selection: str) -> str:
    headings = ["", *summary.table.metrics.values(), "a run"]
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)]]
    for row, cells in lines_of(summary, dataset, selection, decimals=2):
        texts = ["<br>".join(cell) for cell in cells]
        lines.append([row.replace("*", r"\*"), *texts, seconds_of(summary, row, dataset)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def embedding_plot(dataset: str, summary: Summary) -> str:
    """File name; a table of one data set has one plot."""
    return "embedding.png" if len(summary.datasets) == 1 else f"embedding-{dataset}.png"


def provenance(summary: Summary, command: str) -> str:
    """Selection protocol, seeds, data, code, machine, time and sources, as a list."""
    records = summary.finished
    sources = sorted({e.published.source for e in summary.entries.values() if e.published})
    seeds = ", ".join(f"{d} {summary.seeds_of(d)}" for d in summary.datasets)
    items = [
        "Selection: the main score is that of the model after the last epoch, nothing is chosen "
        "with labels. Oracle is the maximum of each metric by itself over all epochs, the state "
        "before the first step included; it uses the labels and is no result of an unsupervised "
        "method.",
        f"Seeds: {seeds}; 0, 1, ... Every seed has its own pre-trained model; it sets "
        "initialisation, mini-batches and k-means alike.",
        f"Data (SHA-256): {distinct(map(data_of, records))}",
        f"Code: {distinct(map(code_of, records))}",
        f"Machine: {distinct(map(machine_of, records))}",
        f"Versions: {distinct(map(versions_of, records))}",
        f"Wall time: {duration(sum(r['seconds'] for r in records))} over all runs",
        f"Runs: {when(records)}",
        f"Command: `{command}`",
    ]
    if sources:
        items.append(f"Published values: {'; '.join(sources)}")
    return "\n".join(f"- {item}" for item in items)


def duration(seconds: float) -> str:
    """Hours and minutes.

    Example:
        >>> duration(42.4), duration(5400)
        ('42 s', '1 h 30 min')
    """
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def distinct(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values)) or "none"


def data_of(record: Record) -> str:
    return f"{record['dataset']} `{record['data_checksum'][:16]}`"


def code_of(record: Record) -> str:
    state = " with changes" if record.get("modified") else ""
    commit = f"commit `{record['commit'][:12]}`{state}, " if record.get("commit") else ""
    return f"{commit}sources `{record['code_version'][:12]}`"


def machine_of(record: Record) -> str:
    machine = record["machine"]
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads a run, "
        f"device {record['device']}, {machine['system']}"
    )


def versions_of(record: Record) -> str:
    return ", ".join(f"{name} {version}" for name, version in record["versions"].items())


def when(records: Sequence[Record]) -> str:
    starts = sorted(record["started"] for record in records)
    return f"{starts[0]} to {starts[-1]}" if starts else "none"


def comma_separated(summary: Summary) -> str:
    """One line a number: ours, the published one, the difference."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for e in summary.entries.values():
        line = {
            "table": summary.table.name,
            "scale": summary.scale,
            "dataset": e.dataset,
            "row": e.row,
            "metric": e.metric,
            "selection": e.selection,
            "mean": number(e.mean),
            "std": number(e.std),
            "seeds": len(e.values),
            "missing": e.missing,
        }
        if e.published:
            line |= {
                "published_mean": number(e.published.mean),
                "published_std": number(e.published.std),
                "published_selection": e.published.selection,
                "difference": number(e.difference),
                "source": e.published.source,
            }
        writer.writerow(line)
    return text.getvalue()


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def as_json(summary: Summary, folder: Path) -> dict[str, Any]:
    """For programs: the entries in percent, and the records without their histories."""
    return {
        "table": summary.table.name,
        "scale": summary.scale,
        "run_folder": str(folder),
        "complete": summary.complete,
        "entries": [
            {
                "dataset": e.dataset,
                "row": e.row,
                "metric": e.metric,
                "selection": e.selection,
                "mean": e.mean,
                "std": e.std,
                "values": list(e.values),
                "missing": e.missing,
                "published": e.published and vars(e.published),
                "difference": e.difference,
            }
            for e in summary.entries.values()
        ],
        "cells": [
            {name: value for name, value in record.items() if name not in ("history", "settings")}
            for record in summary.finished
        ],
    }


def write_pages(summary: Summary, folder: Path, selection: str, command: str) -> None:
    write_text(folder / "table.md", markdown(summary, selection, command))
    write_text(folder / "table.csv", comma_separated(summary))


def record(summary: Summary, folder: Path) -> Path:
    """Copies records, pages and plots into the project, in place of earlier ones."""
    target = RESULTS / f"{summary.table.name}-{summary.scale}"
    fresh, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    plots = [embedding_plot(dataset, summary) for dataset in summary.datasets]
    with disk(target):
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        for cell in summary.cells:
            write_record(fresh, cell, summary.records[cell.key])
        for name in (*RECORDED, *plots):
            copy(folder / name, fresh / name)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    return target.relative_to(PROJECT)


def copy(source: Path, target: Path) -> None:
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
