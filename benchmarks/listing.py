"""What there is: methods and data sets."""

import json
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from benchmarks.names import one_of
from benchmarks.registry import DOMAINS, METHODS

if TYPE_CHECKING:
    from common.data import DatasetSpec


def methods(as_json: bool) -> None:
    """Prints the methods."""
    if as_json:
        listed = [
            {
                "slug": method.slug,
                "class": method.class_path,
                "domain": method.domain,
                "paper": {
                    "title": method.title,
                    "venue": method.venue,
                    "arxiv": method.arxiv,
                },
                "tables": list(method.tables),
                "datasets": list(method.datasets),
            }
            for method in METHODS
        ]
        print(json.dumps(listed, indent=1))
        return
    headings = ("method", "class", "paper", "arXiv", "tables", "data sets")
    rows = [
        (
            method.slug,
            method.class_path,
            f"{method.title} ({method.venue})",
            method.arxiv,
            " ".join(method.tables),
            " ".join(method.datasets),
        )
        for method in METHODS
    ]
    print_table(headings, rows)


def datasets(as_json: bool) -> None:
    """Prints the data sets and which of them are here."""
    from common.data import data_root

    specs = all_specs()
    if as_json:
        listed = [
            {
                "name": spec.name,
                "domain": spec.domain,
                "title": spec.title,
                "task": spec.task,
                "size": spec.size,
                "licence": spec.licence,
                "citation": spec.citation,
                "homepage": spec.homepage,
                "state": state(spec),
                "files": [{"name": f.name, "url": f.url, "sha256": f.sha256} for f in spec.files],
            }
            for spec in specs
        ]
        print(json.dumps(listed, indent=1))
        return
    print_table(
        ("data set", "what", "size", "licence", "here"),
        [(s.name, s.title, s.size, s.licence, state(s)) for s in specs],
    )
    print(f"data root: {data_root()}")


def fetch_dataset(name: str) -> None:
    """Downloads what is missing of a data set, in every domain that has one of that name."""
    from common.data import fetch

    specs = all_specs()
    name = one_of("data set", name, dict.fromkeys(spec.name for spec in specs))
    named = [spec for spec in specs if spec.name == name]
    for spec in named:
        for path in fetch(spec):
            print(path)
    embedded = all(spec.embedded for spec in named)
    print(f"{name} is {'part of an installed package' if embedded else 'complete'}")


def all_specs() -> list["DatasetSpec"]:
    """Those of every domain; domains may share a name, and then its folder."""
    return [spec for domain in DOMAINS for spec in import_module(f"{domain}.data").SPECS.values()]


def state(spec: "DatasetSpec") -> str:
    """Whether a data set can be used right away."""
    from common.data import missing

    if spec.embedded:
        return "embedded"
    lacking = missing(spec)
    if not lacking:
        return "yes"
    return "by hand" if any(file.url is None for file in lacking) else "to fetch"


def print_table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table as wide as the terminal, or tab-separated lines when the output is no terminal."""
    if not sys.stdout.isatty():
        for row in (headings, *rows):
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*headings)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
