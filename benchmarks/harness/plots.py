"""Bars, training curves and embeddings of a table as PNG."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from benchmarks.harness.render import embedding_plot
from benchmarks.harness.store import projection_path, replacing
from benchmarks.harness.summary import Summary

STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 150,
}
PALETTE = "tab10"
CURVES = ("acc", "nmi")


def write_plots(summary: Summary, folder: Path) -> None:
    """Writes ``bars.png``, ``curves.png`` and an embedding plot a data set."""
    with plt.rc_context(STYLE):
        save(bars(summary), folder / "bars.png")
        save(curves(summary), folder / "curves.png")
        for dataset in summary.datasets:
            if shown := projections(summary, dataset, folder):
                save(scatter(shown, dataset), folder / embedding_plot(dataset, summary))


def save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    plt.close(figure)


def colours(summary: Summary) -> dict[str, Any]:
    """Grey for what is not trained by epochs of its own, a colour for each method."""
    palette = iter(plt.get_cmap(PALETTE).colors)  # type: ignore[attr-defined]
    baselines = [row for row in summary.rows if summary.table.row(row).score != "assign"]
    shades = iter(np.linspace(0.78, 0.55, max(len(baselines), 2)))
    return {row: str(next(shades)) if row in baselines else next(palette) for row in summary.rows}


def bars(summary: Summary) -> Figure:
    """Mean and deviation at the last epoch; a tick marks the oracle, a diamond the paper."""
    n = len(summary.datasets)
    figure, axes = plt.subplots(n, 1, figsize=(8.5, 0.4 + 2.9 * n), squeeze=False)
    metrics, colour = summary.table.metrics, colours(summary)
    width = 0.84 / len(summary.rows)
    for axis, dataset in zip(axes[:, 0], summary.datasets, strict=True):
        for i, row in enumerate(summary.rows):
            x = np.arange(len(metrics)) - 0.42 + width * (i + 0.5)
            last = [summary.entry(row, dataset, metric, "last") for metric in metrics]
            known = [entry.published.mean if entry.published else np.nan for entry in last]
            axis.bar(
                x,
                [np.nan if entry.mean is None else entry.mean for entry in last],
                0.92 * width,
                yerr=[np.nan if entry.std is None else entry.std for entry in last],
                color=colour[row],
                error_kw={"elinewidth": 0.9, "ecolor": "0.25"},
                label=row,
            )
            if summary.table.row(row).score == "assign":
                best = [summary.entry(row, dataset, metric, "oracle").mean for metric in metrics]
                tops = [np.nan if mean is None else mean for mean in best]
                axis.hlines(tops, x - 0.46 * width, x + 0.46 * width, color="0.1", linewidth=1.2)
            axis.plot(x, known, "D", color="white", markeredgecolor="0.1", markersize=4)
        axis.set_xticks(range(len(metrics)), metrics.values())
        axis.tick_params(axis="x", length=0)
        axis.set_title(f"{dataset}, {summary.seeds_of(dataset)} seeds")
        axis.set_ylabel("percent")
        axis.grid(axis="y")
    marks = {"oracle epoch": Line2D([], [], color="0.1", linewidth=1.2)}
    if any(entry.published for entry in summary.entries.values()):
        marks["published"] = Line2D(
            [], [], marker="D", color="white", markeredgecolor="0.1", markersize=4
        )
    legend(figure, axes[0, 0], marks)
    return figure


def curves(summary: Summary) -> Figure:
    """Scores after each epoch, mean and deviation over seeds; baselines as dashed lines."""
    shown = [metric for metric in CURVES if metric in summary.table.metrics]
    n = len(summary.datasets)
    figure, axes = plt.subplots(n, len(shown), figsize=(8.5, 0.4 + 2.9 * n), squeeze=False)
    colour = colours(summary)
    for line, dataset in zip(axes, summary.datasets, strict=True):
        for axis, metric in zip(line, shown, strict=True):
            for row in summary.rows:
                draw_curve(axis, summary, row, dataset, metric, colour[row])
            axis.set_title(f"{dataset}, {summary.table.metrics[metric]}")
            axis.set_xlabel("epoch")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.set_ylabel("percent")
            axis.grid(axis="y")
    legend(figure, axes[0, 0])
    return figure


def legend(figure: Figure, axis: Axes, marks: dict[str, Line2D] | None = None) -> None:
    """Below the figure: the rows as drawn in ``axis``, and further marks."""
    handles, labels = axis.get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True)) | (marks or {})
    columns = len(named) if len(named) <= 4 else -(-len(named) // 2)
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns)


def draw_curve(
    axis: Axes, summary: Summary, row: str, dataset: str, metric: str, colour: Any
) -> None:
    histories = [
        [100 * entry[metric] for entry in record["history"]]
        for record in summary.records_of(row, dataset)
    ]
    if not histories:
        return
    epochs = min(map(len, histories))
    values = np.array([history[:epochs] for history in histories])  # (seeds, epochs)
    mean, std = values.mean(axis=0), values.std(axis=0)
    if epochs == 1:
        axis.axhline(mean[0], color=colour, linestyle="--", linewidth=1.3, label=row)
        return
    axis.plot(mean, color=colour, linewidth=1.3, label=row)
    axis.fill_between(range(epochs), mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)


def projections(summary: Summary, dataset: str, folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """The first seed's projections by row, as far as they were kept."""
    found = {}
    for cell in summary.cells:
        path = projection_path(folder, cell.key)
        if cell.dataset == dataset and cell.seed == 0 and path.is_file():
            with np.load(path) as arrays:
                found[cell.row] = dict(arrays)
    return {row: found[row] for row in summary.rows if row in found}


def scatter(shown: dict[str, dict[str, np.ndarray]], dataset: str) -> Figure:
    """Each row's embedding in two dimensions, coloured by class."""
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(2.9 * columns, 0.6 + 2.9 * lines), squeeze=False
    )
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for axis, (row, arrays) in zip(axes.flat, shown.items(), strict=False):
        points, classes = arrays["points"], arrays["y"]
        palette = plt.get_cmap("tab10" if classes.max() < 10 else "tab20")
        size = 4 if len(points) > 500 else 12
        axis.scatter(*points.T, color=palette(classes % palette.N), s=size, linewidths=0)
        axis.set_title(row)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(visible=True, color="0.85")
    first = next(iter(shown.values()))
    m, n = len(first["points"]), int(first["n"])
    part = f"{m} of {n} samples" if m < n else f"{n} samples"
    figure.suptitle(f"{dataset}: seed 0, t-SNE of {part}, coloured by class", fontsize=9)
    return figure
