"""How a published table is declared: rows, columns, recipes, seeds. Data, no behaviour."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from benchmarks.names import one_of

PROJECT = Path(__file__).resolve().parents[2]

Score = Literal["assign", "kmeans", "features"]


@dataclass(frozen=True)
class Row:
    """A method or an ablation.

    Args:
        name: as shown.
        recipe: path of its recipes in the project, with ``{dataset}`` in it.
        score: what is scored. ``assign``: the model's own clusters, at every epoch; ``kmeans``:
            k-means on ``encode`` of the trained model; ``features``: k-means on the raw features,
            nothing is trained.
        overrides: recipe keys to other values, such as ``{"model.init_args.alpha": 0.0}``.
        starts_from: the row whose checkpoint of the same data set and seed this one starts from.
        optional: run only if asked for by name.
    """

    name: str
    recipe: str
    score: Score = "assign"
    overrides: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    starts_from: str | None = None
    optional: bool = False


@dataclass(frozen=True)
class Scale:
    """How large a reproduction is.

    Args:
        datasets: run if none are named.
        others: data sets that may be named.
        seeds: default number of seeds.
        overlay: a recipe that is laid on top of those in its folder; a method without one is
            trained as its recipes say.
        as_is: data sets whose recipes have this scale without the overlay.
    """

    datasets: tuple[str, ...]
    seeds: int
    others: tuple[str, ...] = ()
    overlay: str | None = None
    as_is: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A published table and how each of its cells is reproduced.

    Args:
        name: on the command line and in results.
        title: heading of its page.
        domain: the package of its methods; with ``common``, it makes up the code version of a cell.
        scales: by name; the first one is the default.
        metrics: keys of the scores to headings.
        published: file in ``benchmarks/published``.
        start_key: recipe key that takes the checkpoint a row starts from.
        expect: what should be seen, from the paper.
    """

    name: str
    title: str
    domain: str
    rows: tuple[Row, ...]
    scales: Mapping[str, Scale]
    metrics: Mapping[str, str]
    published: str | None = None
    start_key: str = "model.init_args.autoencoder"
    expect: str = ""

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def choose_rows(self, names: list[str] | None) -> list[Row]:
        """The rows of these names in the order of the table; all but the optional for None."""
        if names is None:
            return [row for row in self.rows if not row.optional]
        chosen = {one_of("row", name, [row.name for row in self.rows]) for name in names}
        return [row for row in self.rows if row.name in chosen]

    def choose_scale(self, name: str | None) -> str:
        return next(iter(self.scales)) if name is None else one_of("scale", name, self.scales)

    def choose_datasets(self, scale: str, names: list[str] | None) -> list[str]:
        allowed = self.scales[scale]
        if names is None:
            return list(allowed.datasets)
        valid = (*allowed.datasets, *allowed.others)
        return list(dict.fromkeys(one_of(f"{scale} data set", name, valid) for name in names))


def table_names() -> list[str]:
    """The declared tables, ``benchmarks/<domain>/<name>.py``."""
    return sorted(path.stem for path in _declarations())


def load_table(name: str) -> Table:
    """The table of that name.

    Raises:
        ArgumentError: there is none.
    """
    name = one_of("table", name, table_names())
    path = next(path for path in _declarations() if path.stem == name)
    table: Table = import_module(f"benchmarks.{path.parent.name}.{name}").TABLE
    return table


def _declarations() -> list[Path]:
    tables = (PROJECT / "benchmarks").glob("*/*.py")
    own = {"harness", "speed", "ablation", "notes"}
    return [path for path in tables if path.parent.name not in own and path.stem != "__init__"]
