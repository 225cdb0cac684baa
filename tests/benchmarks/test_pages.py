"""Means, pages and plots."""

import csv
import json
import shutil
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
import torch

from benchmarks.harness import render, summary
from benchmarks.harness.projection import save_projection
from benchmarks.harness.report import write_report
from benchmarks.harness.reproduce import Options, reproduce
from benchmarks.harness.store import RunStore, projection_path
from benchmarks.harness.summary import Entry, Published
from common.errors import RunError
from tests.benchmarks.tiny import tiny_table

PUBLISHED = """table,row,dataset,metric,mean,std,selection,source
tiny,alpha,blobs,acc,60.0,0.5,oracle,the log
tiny,start,blobs,acc,50.0,,last,the paper
tiny,other,blobs,nmi,40.0,,unstated,another paper
"""


@pytest.fixture
def published(tmp_path, monkeypatch):
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "tiny.csv").write_text(PUBLISHED)
    monkeypatch.setattr(summary, "PUBLISHED", folder)
    return replace(tiny_table(), published="tiny.csv")


def test_mean_and_population_standard_deviation():
    entry = Entry("a", "b", "acc", "last", (80.0, 90.0, 85.0))
    assert entry.mean == 85
    assert entry.std == pytest.approx(np.std([80, 90, 85]))
    assert entry.difference is None
    assert render.ours(entry) == "85.00 ± 4.08"


def test_the_difference_is_ours_minus_published():
    entry = replace(
        Entry("a", "b", "acc", "oracle", (80.0, 82.0)),
        published=Published(84.89, None, "oracle", "run log"),
    )
    assert entry.difference == pytest.approx(-3.89)
    assert render.theirs(entry.published, entry.difference) == "84.89† (-3.89)"
    assert replace(entry, selection="last").difference is None  # not the same kind of score


def test_missing_cells_are_said_to_be_missing():
    assert render.ours(Entry("a", "b", "acc", "last", (), missing=3)) == "missing"
    some = Entry("a", "b", "acc", "last", (50.0,), missing=2)
    assert render.ours(some) == "50.00 ± 0.00 (1/3 seeds)"


@pytest.mark.usefixtures("no_plots")
def test_the_csv_agrees_with_the_records(published, instant, tmp_path):
    run = tmp_path / "run"
    reproduce(published, Options(out=run))
    records = [json.loads(path.read_text()) for path in run.glob("cells/*/*.json")]
    with (run / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 4 * 4 * 2  # rows, metrics, selections
    for line in lines:
        values = [
            100 * record["metrics"][line["selection"]][line["metric"]]
            for record in records
            if record["row"] == line["row"]
        ]
        assert float(line["mean"]) == pytest.approx(np.mean(values), abs=1e-3)
        assert float(line["std"]) == pytest.approx(np.std(values), abs=1e-3)
    oracle, last = (
        next(
            line
            for line in lines
            if (line["row"], line["metric"], line["selection"]) == ("alpha", "acc", selection)
        )
        for selection in ("oracle", "last")
    )
    assert float(oracle["difference"]) == pytest.approx(float(oracle["mean"]) - 60, abs=1e-3)
    assert last["difference"] == ""
    assert oracle["source"] == last["source"] == "the log"


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("selection", ["last", "oracle"])
def test_the_page_says_where_the_numbers_come_from(
    published, instant, tmp_path, selection, capsys, monkeypatch
):
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "tiny.md").write_text("Alpha drifts down.")
    monkeypatch.setattr(render, "NOTES", notes)
    run, command = tmp_path / "run", ["clustrast", "reproduce", "tiny"]
    reproduce(published, Options(out=run, selection=selection, command=command))
    page = (run / "table.md").read_text()
    for part in (
        "Selection: the main score",
        "Seeds: blobs 2",
        "Data (SHA-256): blobs `blobs-60-3`",
        "Command: `clustrast reproduce tiny`",
        "Machine:",
        "Wall time: 8 s over all runs",
        "Published values: the log; the paper",
        "Alpha drifts down.",
        "† published value of the best epoch, chosen with labels",
        "‡ published without saying which epoch",
        "| other (published) |",
        "population standard deviation",
    ):
        assert part in page, part
    last, oracle = page.index("## Last epoch"), page.index("## Oracle")
    assert (last < oracle) == (selection == "last")
    shown = capsys.readouterr().out
    assert (shown.index("Last epoch") < shown.index("Oracle")) == (selection == "last")


def test_recording_replaces_the_folder_and_needs_all_cells(table, instant, tmp_path, monkeypatch):
    monkeypatch.setattr(render, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(render, "PROJECT", tmp_path)
    run, target = tmp_path / "run", tmp_path / "results" / "tiny-small"
    instant.broken = {"blobs · alpha · seed 0"}
    assert reproduce(table, Options(out=run, record=True)) == 1
    assert not target.exists()
    instant.broken = set()
    assert reproduce(table, Options(out=run, record=True)) == 0
    assert len(list(target.glob("cells/*/*.json"))) == 8
    assert {p.name for p in target.iterdir()} >= {"table.md", "table.csv", "bars.png", "curves.png"}
    assert not list(target.rglob("*.ckpt"))
    assert reproduce(table, Options(out=run, record=True, seeds=["1"])) == 0
    assert len(list(target.glob("cells/*/*.json"))) == 4
    assert [path.name for path in target.parent.iterdir()] == ["tiny-small"]
    shutil.rmtree(run)
    assert reproduce(table, Options(out=run, reuse=[target], rows=["features"], seeds=["1"])) == 0
    assert len(instant.computed) == 8


def test_plots_show_every_data_set(instant, tmp_path):
    table = tiny_table()
    assert reproduce(table, Options(out=tmp_path, scale="paper", seeds=["1"])) == 0
    with RunStore(tmp_path) as store:
        generator = torch.Generator().manual_seed(0)
        for key, record in store.records.items():
            if record["dataset"] == "rings" and record["row"] != "features":
                z = torch.randn(60, 5, generator=generator)
                save_projection(projection_path(tmp_path, key), z, torch.arange(60) % 3)
    assert reproduce(table, Options(out=tmp_path, scale="paper", seeds=["1"])) == 0
    for name in ("bars.png", "curves.png", "embedding-rings.png"):
        image = matplotlib.image.imread(tmp_path / name)
        assert min(image.shape[:2]) > 300
        assert image.std() > 0.01, f"{name} is empty"
    assert not (tmp_path / "embedding-blobs.png").exists(), "nothing was kept to draw"


def test_the_projection_is_of_the_same_samples_each_time(tmp_path):
    y = torch.arange(1200)
    for name in ("a", "b"):
        save_projection(tmp_path / name, torch.randn(1200, 4), y)
    first, second = (np.load(tmp_path / name) for name in ("a", "b"))
    assert first["points"].shape == (1000, 2)
    assert (first["y"] == second["y"]).all()
    assert len(set(first["y"])) == 1000
    assert first["n"] == 1200


@pytest.mark.usefixtures("no_plots")
def test_the_report_gathers_all_tables(published, instant, tmp_path):
    results = tmp_path / "results"
    for name in ("tiny-small", "tiny-paper"):
        reproduce(published, Options(out=results / name, scale=name.partition("-")[2]))
    page = write_report(results).read_text()
    assert page.startswith("# Reproduced tables")
    assert "![Scores](tiny-small/bars.png)" in page
    assert "### Last epoch" in page
    assert "[tiny-paper](#tiny-paper)" in page


def test_a_report_of_nothing_is_an_error(tmp_path):
    with pytest.raises(RunError, match="no table in"):
        write_report(tmp_path)
