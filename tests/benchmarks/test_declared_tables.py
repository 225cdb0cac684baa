"""The tables of the papers: every recipe resolves, every published value is the card's."""

import csv
from dataclasses import replace

import pytest

from benchmarks import registry
from benchmarks.harness.plan import Cell, code_version, plan, resolve
from benchmarks.harness.summary import PUBLISHED, read_published
from benchmarks.harness.table import PROJECT, load_table, table_names
from benchmarks.names import one_of
from common.errors import ArgumentError
from graphs.data import SPECS

TABLES = ("scgc", "pamc")


def test_the_tables_are_found():
    assert set(table_names()) == set(TABLES)
    with pytest.raises(ArgumentError, match="unknown table 'sgcg', did you mean 'scgc'"):
        load_table("sgcg")


@pytest.mark.parametrize("name", TABLES)
def test_declarations_are_consistent(name):
    table = load_table(name)
    names = [row.name for row in table.rows]
    assert len(set(names)) == len(names)
    for row in table.rows:
        if row.starts_from:
            assert table.row(row.starts_from).starts_from is None
    for scale in table.scales.values():
        assert {*scale.datasets, *scale.others} <= set(SPECS)
    assert table.scales["small"].datasets == ("digits",)
    assert table.scales["paper"].seeds == 10
    assert table.choose_datasets("paper", ["usps", "acm", "usps"]) == ["usps", "acm"]
    with pytest.raises(ArgumentError, match="digits"):
        table.choose_datasets("paper", ["digits"])


@pytest.mark.parametrize("name", TABLES)
def test_every_recipe_resolves(name):
    table = load_table(name)
    for dataset in table.scales["paper"].datasets:
        for row in table.choose_rows(None):
            _, settings = resolve(table, "paper", row, dataset)
            assert settings["data"]["init_args"]["dataset"] == dataset
            if row.score == "features":
                assert set(settings) == {"data"}
            else:
                assert settings["trainer"]["max_epochs"] == (30 if row.score == "kmeans" else 200)
            if row.score == "assign":
                assert settings["model"]["init_args"]["n_clusters"] == SPECS[dataset].n_clusters
    for row in table.rows:
        files, settings = resolve(table, "small", row, "acm")
        if row.score == "assign":
            assert files[1].name == "small.yaml"
            assert settings["trainer"]["max_epochs"] < 200
        assert len(resolve(table, "small", row, "digits")[0]) == 1


def test_rows_differ_where_their_names_say():
    scgc, pamc = load_table("scgc"), load_table("pamc")

    def model(table, row):
        return resolve(table, "paper", table.row(row), "usps")[1]["model"]

    star, plain = model(scgc, "SCGC*"), model(scgc, "SCGC")
    assert (star["init_args"]["alpha"], star["init_args"]["order"]) == (4.0, 4)
    assert (star["init_args"]["variant"], plain["init_args"]["variant"]) == ("scgc*", "scgc")
    assert model(scgc, "DEC (alpha = 0)")["init_args"] == star["init_args"] | {"alpha": 0.0}
    assert model(scgc, "SCGC*, r = 2")["init_args"] == star["init_args"] | {"order": 2}
    assert model(scgc, "PamC") == model(pamc, "PamC (meta-nodes)")
    assert model(scgc, "PamC")["class_path"] == "graphs.PamC"
    exact = model(pamc, "Exact negatives, settings of PamC")
    assert exact["class_path"] == "graphs.SCGC"
    same = ("alpha", "beta", "order", "inverse_temperature", "n_clusters", "in_dim")
    block = model(pamc, "PamC (meta-nodes)")["init_args"]
    assert [exact["init_args"][key] for key in same] == [block[key] for key in same]
    assert exact["init_args"]["variant"] == "scgc*"


@pytest.mark.parametrize(
    ("table", "row", "dataset", "values"),
    [
        ("scgc", "Autoencoder + k-means", "usps", "71.04±0.03 67.53±0.03 58.83±0.05 69.74±0.03"),
        ("scgc", "DEC (alpha = 0)", "usps", "73.31±0.17 70.58±0.25 63.70±0.27 71.82±0.21"),
        ("scgc", "SDCN", "usps", "78.08±0.19 79.51±0.27 71.84±0.24 76.98±0.18"),
        ("scgc", "SCGC*", "usps", "84.89 84.11 79.41 81.52"),
        ("scgc", "Autoencoder + k-means", "hhar", "68.69±0.31 71.42±0.97"),
        ("scgc", "DEC (alpha = 0)", "hhar", "69.39±0.25 72.91±0.39"),
        ("scgc", "SDCN", "hhar", "84.26±0.17 79.90±0.09"),
        ("scgc", "Autoencoder + k-means", "reuters", "74.90±0.21 49.69±0.29"),
        ("scgc", "DEC (alpha = 0)", "reuters", "73.58±0.13 47.50±0.34"),
        ("scgc", "SDCN", "reuters", "77.15±0.21 50.82±0.21"),
        ("scgc", "Autoencoder + k-means", "acm", "81.83±0.08 49.30±0.16 54.64±0.16 82.01±0.08"),
        ("scgc", "DEC (alpha = 0)", "acm", "84.33±0.76 54.54±1.51 60.64±1.87 84.51±0.74"),
        ("scgc", "SDCN", "acm", "90.45±0.18 68.31±0.25 73.91±0.40 90.42±0.19"),
        ("scgc", "Autoencoder + k-means", "dblp", "51.43±0.35 25.40±0.16 12.21±0.43 52.53±0.36"),
        ("scgc", "DEC (alpha = 0)", "dblp", "58.16±0.56 29.51±0.28 23.92±0.39 59.38±0.51"),
        ("scgc", "SDCN", "dblp", "68.05±1.81 39.50±1.34 39.15±2.01 67.71±1.51"),
        ("scgc", "Autoencoder + k-means", "citeseer", "57.08±0.13 27.64±0.08"),
        ("scgc", "DEC (alpha = 0)", "citeseer", "55.89±0.20 28.34±0.30"),
        ("scgc", "SDCN", "citeseer", "65.96±0.31 38.71±0.32"),
        ("scgc", "PamC", "usps", "84.20±0.24 80.31±0.38 77.75±0.57 78.82±0.17"),
        (
            "scgc",
            "Autoencoder + k-means (weights shipped with SDCN)",
            "usps",
            "70.98 67.48 58.74 69.68",
        ),
        ("pamc", "Autoencoder + k-means", "usps", "71.04±0.03 67.53±0.03 58.83±0.05 69.74±0.03"),
        ("pamc", "SDCN", "usps", "78.08±0.19 79.51±0.27 71.84±0.24 76.98±0.18"),
        ("pamc", "SCGC* (exact negatives)", "usps", "84.89 84.11 79.41 81.52"),
        ("pamc", "PamC (meta-nodes)", "usps", "84.20±0.24 80.31±0.38 77.75±0.57 78.82±0.17"),
        ("pamc", "Autoencoder + k-means", "hhar", "68.69 71.42"),
        ("pamc", "Autoencoder + k-means", "reuters", "74.90 49.69"),
        ("pamc", "Autoencoder + k-means", "acm", "81.83 49.30"),
        ("pamc", "Autoencoder + k-means", "dblp", "51.43 25.40"),
        ("pamc", "Autoencoder + k-means", "citeseer", "57.08 27.64"),
        ("pamc", "SDCN", "hhar", "84.26 79.90"),
        ("pamc", "SDCN", "reuters", "77.15 50.82"),
        ("pamc", "SDCN", "acm", "90.45 68.31"),
        ("pamc", "SDCN", "dblp", "68.05 39.50"),
        ("pamc", "SDCN", "citeseer", "65.96 38.71"),
    ],
)
def test_published_values(table, row, dataset, values):
    found = read_published(load_table(table))
    metrics = ("acc", "nmi", "ari", "f1")
    for metric, value in zip(metrics, values.split(), strict=False):
        mean, _, std = value.partition("±")
        entry = found[row, dataset, metric]
        assert (entry.mean, entry.std) == (float(mean), float(std) if std else None)
    assert sum((row, dataset, metric) in found for metric in metrics) == len(values.split())


@pytest.mark.parametrize("name", TABLES)
def test_published_values_say_where_they_are_from(name):
    with (PUBLISHED / f"{name}.csv").open() as file:
        lines = list(csv.DictReader(file))
    keys = [(line["row"], line["dataset"], line["metric"]) for line in lines]
    assert len(set(keys)) == len(keys)
    for line in lines:
        assert line["table"] == name
        if "log" in line["source"]:
            best = "best epoch" in line["source"]
            assert line["selection"] == ("oracle" if best else "last")
        elif "SDCN paper" in line["source"]:
            assert line["selection"] in ("last", "unstated")
        assert line["source"]


def test_the_tables_share_their_cells():
    scgc, pamc = (
        {cell.key: cell for cell in plan(table, "small", ["digits"], {"digits": 2}, rows)}
        for table in map(load_table, TABLES)
        for rows in [table.choose_rows(None)]
    )
    assert len(scgc) == 12
    assert len(pamc) == 8
    assert pamc.keys() <= scgc.keys()
    for key, cell in pamc.items():
        assert (cell.starts_from, cell.keep_checkpoint) == (
            scgc[key].starts_from,
            scgc[key].keep_checkpoint,
        )
        assert cell.starts_from is None or cell.starts_from in pamc


def cell(**changes):
    fields = {
        "row": "SCGC*",
        "dataset": "acm",
        "seed": 0,
        "scale": "paper",
        "score": "assign",
        "settings": {"model": {"init_args": {"alpha": 1.0}}},
        "recipe": ("a.yaml",),
        "overrides": {},
        "data_checksum": "d",
        "code_version": "c",
        "starts_from": None,
        "start_key": "model.init_args.autoencoder",
        "keep_checkpoint": False,
        "keep_embedding": True,
    }
    return Cell(**(fields | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"score": "kmeans"},
        {"settings": {"model": {"init_args": {"alpha": 0.0}}}},
        {"data_checksum": "e"},
        {"code_version": "e"},
        {"starts_from": "k"},
    ],
)
def test_what_changes_a_result_changes_the_key(changes):
    assert cell(**changes).key != cell().key


def test_names_and_places_do_not_change_the_key():
    other = cell(row="SCGC* (exact negatives)", scale="small", recipe=("b.yaml",))
    assert other.key == cell().key
    assert replace(cell(), keep_checkpoint=True).key == cell().key
    assert cell().path == f"acm/scgc-star-seed0-{cell().key[:8]}"


def test_the_code_version_follows_the_sources(tmp_path, monkeypatch):
    package = tmp_path / "sources_under_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = code_version("sources_under_test")
    assert code_version("sources_under_test") == before
    (package / "notes.txt").write_text("no source")
    assert code_version("sources_under_test") == before
    (package / "a.py").write_text("x = 2\n")
    assert code_version("sources_under_test") != before


@pytest.mark.parametrize("method", registry.METHODS, ids=lambda method: method.slug)
def test_the_registry_speaks_of_what_there_is(method):
    assert method.cls.__name__ == method.class_path.rpartition(".")[2]
    assert set(method.tables) <= set(table_names())
    assert method.data_cls is not None
    for dataset in method.datasets:
        assert (PROJECT / method.domain / "recipes" / method.slug / f"{dataset}.yaml").is_file()
        assert dataset in SPECS


def test_close_matches():
    assert one_of("row", "dec-alpha-0", ["DEC (alpha = 0)"]) == "DEC (alpha = 0)"
    with pytest.raises(ArgumentError, match="unknown row 'x'; known: SCGC"):
        one_of("row", "x", ["SCGC"])
