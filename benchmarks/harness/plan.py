"""Which cells a reproduction consists of. A cell is a row on a data set under a seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.harness.provenance import code_version
from benchmarks.harness.store import digest
from benchmarks.harness.table import PROJECT, Row, Score, Table
from benchmarks.names import slug


@dataclass(frozen=True)
class Cell:
    """Everything a process needs to compute one cell.

    Args:
        row, dataset, seed, scale: what it is.
        score: what is scored, see :class:`~benchmarks.harness.table.Row`.
        settings: the resolved recipe: model, data, trainer.
        recipe: the files it was read from.
        overrides: what the row changes in them.
        data_checksum: of the data set.
        code_version: of the packages that compute it.
        starts_from: key of the cell whose checkpoint it starts from.
        start_key: recipe key that takes that checkpoint.
        keep_checkpoint: other cells start from this one.
        keep_embedding: it is shown in the 2-D plot.
    """

    row: str
    dataset: str
    seed: int
    scale: str
    score: Score
    settings: Mapping[str, Any]
    recipe: tuple[str, ...]
    overrides: Mapping[str, Any]
    data_checksum: str
    code_version: str
    starts_from: str | None
    start_key: str
    keep_checkpoint: bool
    keep_embedding: bool

    @cached_property
    def key(self) -> str:
        """Digest of what the result depends on. Two cells with the same key are the same cell."""
        return digest(
            {
                "settings": self.settings,
                "score": self.score,
                "seed": self.seed,
                "data": self.data_checksum,
                "code": self.code_version,
                "starts_from": self.starts_from,
            }
        )

    @property
    def path(self) -> str:
        """Its place in a run folder, without an ending."""
        return f"{self.dataset}/{slug(self.row)}-seed{self.seed}-{self.key[:8]}"

    def __str__(self) -> str:
        return f"{self.dataset} · {self.row} · seed {self.seed}"


def plan(
    table: Table, scale: str, datasets: Sequence[str], seeds: Mapping[str, int], rows: Sequence[Row]
) -> list[Cell]:
    """The cells of ``rows``, and those they start from, which come first.

    Args:
        seeds: how many, by data set.

    Raises:
        ArgumentError: a recipe that cannot be read.
        DataError: a data set that is not there.
    """
    code = code_version("common", table.domain)
    parents = {row.starts_from for row in table.rows if row.starts_from}
    needed = {row.name for row in rows} | {row.starts_from for row in rows if row.starts_from}
    ordered = sorted(
        (row for row in table.rows if row.name in needed), key=lambda row: row.name not in parents
    )
    cells: list[Cell] = []
    for dataset in datasets:
        checksum = None
        for row in ordered:
            files, settings = resolve(table, scale, row, dataset)
            checksum = checksum or data_checksum(settings)
            for seed in range(seeds[dataset]):
                cells.append(
                    Cell(
                        row=row.name,
                        dataset=dataset,
                        seed=seed,
                        scale=scale,
                        score=row.score,
                        settings=settings,
                        recipe=tuple(path.relative_to(PROJECT).as_posix() for path in files),
                        overrides=dict(row.overrides),
                        data_checksum=checksum,
                        code_version=code,
                        starts_from=find(cells, row.starts_from, dataset, seed),
                        start_key=table.start_key,
                        keep_checkpoint=row.name in parents,
                        keep_embedding=seed == 0,
                    )
                )
    return cells


def find(cells: Sequence[Cell], row: str | None, dataset: str, seed: int) -> str | None:
    """Key of a cell that was planned before."""
    wanted = (row, dataset, seed)
    return next((c.key for c in cells if (c.row, c.dataset, c.seed) == wanted), None)


def resolve(table: Table, scale: str, row: Row, dataset: str) -> tuple[list[Path], dict[str, Any]]:
    """The recipe files of a cell, and what they say once they are laid on top of each other."""
    from benchmarks.harness.recipes import Recipe

    files = [PROJECT / row.recipe.format(dataset=dataset)]
    overlay, as_is = table.scales[scale].overlay, table.scales[scale].as_is
    if overlay and dataset not in as_is:
        files.append(files[0].parent / overlay)
    settings = Recipe.read(files, row.overrides).settings
    if row.score == "features":
        settings = {"data": settings["data"]}
    settings["data"]["init_args"].pop("root", None)
    return files, settings


def data_checksum(settings: Mapping[str, Any]) -> str:
    """Checksum of the data set that a cell reads."""
    from benchmarks.harness.recipes import load_data

    checksum: str = load_data(settings).checksum
    return checksum
