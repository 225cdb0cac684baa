"""What is computed, what is kept, what is said when something is wrong."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.harness.reproduce import Options, choose_seeds, reproduce
from benchmarks.harness.store import RunStore
from benchmarks.harness.table import Scale
from common.errors import ArgumentError, RunError
from tests.benchmarks.tiny import tiny_table

pytestmark = pytest.mark.usefixtures("no_plots")

ALL = 8  # 4 rows, 1 data set, 2 seeds


def records(folder):
    return sorted(folder.glob("cells/*/*.json"))


def test_finished_cells_are_not_repeated(table, instant, tmp_path):
    assert reproduce(table, Options(out=tmp_path)) == 0
    assert len(instant.computed) == len(records(tmp_path)) == ALL
    assert reproduce(table, Options(out=tmp_path)) == 0
    assert len(instant.computed) == ALL
    assert reproduce(table, Options(out=tmp_path, seeds=["3"])) == 0
    assert instant.computed[ALL:] == [
        f"blobs · {row} · seed 2" for row in ("start", "features", "alpha", "alpha = 0")
    ]


def test_the_cell_that_a_chosen_row_starts_from_is_run_but_not_shown(table, instant, tmp_path):
    options = Options(out=tmp_path, rows=["alpha"], seeds=["1"])
    assert reproduce(table, options) == 0
    assert instant.computed == ["blobs · start · seed 0", "blobs · alpha · seed 0"]
    lines = (tmp_path / "table.csv").read_text().splitlines()[1:]
    assert {line.split(",")[3] for line in lines} == {"alpha"}


def test_an_optional_row_is_run_only_if_named(table, instant, tmp_path):
    reproduce(table, Options(out=tmp_path, seeds=["1"]))
    assert not any("extra" in cell for cell in instant.computed)
    reproduce(table, Options(out=tmp_path, seeds=["1"], rows=["extra"]))
    assert instant.computed[-1] == "blobs · extra · seed 0"


def test_a_failed_cell_is_missing_and_does_not_stop_the_others(table, instant, tmp_path, capsys):
    instant.broken = {"blobs · alpha · seed 0"}
    assert reproduce(table, Options(out=tmp_path)) == 1
    assert len(records(tmp_path)) == ALL - 1
    assert "broken on purpose" in capsys.readouterr().err
    page = (tmp_path / "table.md").read_text()
    assert "(1/2 seeds)" in page
    assert "Incomplete: 7 of 8" in page
    instant.broken = set()
    assert reproduce(table, Options(out=tmp_path)) == 0
    assert instant.computed[ALL - 1 :] == ["blobs · alpha · seed 0"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text(path.read_text().replace('"seed": 0', '"seed": 1')),
        lambda path: path.write_text("[1, 2]"),
        lambda path: path.write_bytes(b"\xff\xfe\x00"),
    ],
    ids=["truncated", "empty", "altered", "other", "binary"],
)
def test_a_damaged_record_is_reported_kept_aside_and_recomputed(
    table, instant, tmp_path, capsys, damage
):
    reproduce(table, Options(out=tmp_path))
    path = next(path for path in records(tmp_path) if path.name.startswith("alpha-0-seed0"))
    whole = path.read_bytes()
    damage(path)
    broken = path.read_bytes()
    assert reproduce(table, Options(out=tmp_path)) == 0
    assert instant.computed[ALL:] == ["blobs · alpha = 0 · seed 0"]
    assert path.read_bytes() == whole
    aside = path.with_name(f"{path.name}.damaged")
    assert aside.read_bytes() == broken
    assert aside.name in capsys.readouterr().err.replace("\n", "")


def test_a_second_damaged_record_does_not_replace_the_first(table, instant, tmp_path):
    reproduce(table, Options(out=tmp_path))
    path = records(tmp_path)[0]
    for content in (b"first", b"second"):
        path.write_bytes(content)
        reproduce(table, Options(out=tmp_path))
    kept = sorted(tmp_path.glob("cells/*/*.damaged*"))
    assert [file.read_bytes() for file in kept] == [b"first", b"second"]


@pytest.mark.parametrize("loss", ["gone", "changed"])
def test_a_checkpoint_that_is_not_the_recorded_one_is_made_again(table, instant, tmp_path, loss):
    reproduce(table, Options(out=tmp_path, rows=["start"], seeds=["1"]))
    (path,) = tmp_path.glob("checkpoints/*.ckpt")
    path.unlink() if loss == "gone" else path.write_text("other weights")
    reproduce(table, Options(out=tmp_path, rows=["start"], seeds=["1"]))
    assert len(instant.computed) == 1, "nobody starts from it, so it is not needed"
    reproduce(table, Options(out=tmp_path, rows=["alpha"], seeds=["1"]))
    assert instant.computed[1:] == ["blobs · start · seed 0", "blobs · alpha · seed 0"]


def test_cells_of_another_folder_are_reused(table, instant, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    reproduce(table, Options(out=first, rows=["start"]))
    reproduce(table, Options(out=second, reuse=[first], rows=["start", "alpha"]))
    assert instant.computed[2:] == ["blobs · alpha · seed 0", "blobs · alpha · seed 1"]
    with RunStore(second) as store:
        taken = [key for key, record in store.records.items() if record["row"] == "start"]
        assert all(store.has_checkpoint(key) for key in taken)


def test_reuse_of_a_folder_that_is_none(table, instant, tmp_path):
    with pytest.raises(RunError, match="nothing-here is not a run folder"):
        reproduce(table, Options(out=tmp_path / "run", reuse=[tmp_path / "nothing-here"]))


def test_a_second_reproduction_on_the_same_folder_is_refused(table, instant, tmp_path):
    with (
        RunStore(tmp_path),
        pytest.raises(RunError, match=f"process {os.getpid()}.*{tmp_path}"),
    ):
        reproduce(table, Options(out=tmp_path))
    assert reproduce(table, Options(out=tmp_path)) == 0, "the lock is gone with its holder"


def test_a_full_disk_leaves_no_half_record(table, instant, tmp_path, monkeypatch):
    real = Path.write_text

    def full(path, text, **options):
        if ".json" in path.name and len(instant.computed) == 4:
            real(path, text[: len(text) // 2], **options)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, text, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(RunError, match=r"cannot write .*\.json: No space left on device"):
            reproduce(table, Options(out=tmp_path))
    assert len(records(tmp_path)) == 3
    assert all(json.loads(path.read_text())["key"] for path in records(tmp_path))
    assert not list(tmp_path.rglob("*.tmp"))
    assert reproduce(table, Options(out=tmp_path)) == 0
    assert len(records(tmp_path)) == ALL


def test_a_run_folder_that_cannot_be_made(table, instant, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*file"):
        reproduce(table, Options(out=tmp_path / "file" / "run"))


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(table, instant, tmp_path, capsys):
    def interrupt(cell):
        if len(instant.computed) == 3:
            raise KeyboardInterrupt

    instant.before = interrupt
    command = ["clustrast", "reproduce", "tiny"]
    assert reproduce(table, Options(out=tmp_path, command=command)) == 130
    assert len(records(tmp_path)) == 3
    said = capsys.readouterr().err
    assert "3 finished cells" in said
    assert "clustrast reproduce tiny" in said
    instant.before = lambda cell: None
    assert reproduce(table, Options(out=tmp_path)) == 0
    assert len(instant.computed) == len(set(instant.computed)) == ALL


def test_stale_temporary_files_are_cleared(table, instant, tmp_path):
    reproduce(table, Options(out=tmp_path))
    stale = tmp_path / "cells" / "blobs" / ".alpha-seed0.json.4711.tmp"
    stale.write_text('{"half": ')
    reproduce(table, Options(out=tmp_path))
    assert not stale.exists()
    assert len(instant.computed) == ALL


def test_json_is_all_there_is_on_standard_output(table, instant, tmp_path, capsys):
    reproduce(table, Options(out=tmp_path, json=True))
    found = json.loads(capsys.readouterr().out)
    assert found["complete"]
    assert found["run_folder"] == str(tmp_path)
    assert len(found["cells"]) == ALL
    entry = next(e for e in found["entries"] if e["row"] == "alpha" and e["metric"] == "acc")
    assert entry["mean"] == pytest.approx(sum(entry["values"]) / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(scale="papr"), "unknown scale 'papr', did you mean 'paper'"),
        (Options(datasets=["blob"]), "unknown small data set 'blob', did you mean 'blobs'"),
        (Options(rows=["alhpa"]), "unknown row 'alhpa', did you mean 'alpha'"),
        (Options(selection="best"), "unknown selection 'best'"),
        (Options(seeds=["0"]), "--seeds must be N or NAME=N with N at least 1, got '0'"),
        (Options(seeds=["-1"]), "got '-1'"),
        (Options(seeds=["usps=2"]), "unknown data set 'usps'"),
        (Options(jobs=0), "--jobs must be at least 1, got 0"),
    ],
)
def test_unknown_names_are_errors_before_anything_is_made(
    table, instant, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match=message.replace("(", r"\(")):
        reproduce(table, options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("accident", "message"),
    [
        ({"alhpa": 1}, "option 'alhpa' is not accepted"),
        ({"alpha": "much"}, "alpha.*float.*much"),
    ],
)
def test_a_bad_override_names_recipe_and_key(instant, tmp_path, accident, message):
    with pytest.raises(ArgumentError, match=rf"blobs\.yaml: .*{message}"):
        reproduce(tiny_table(accident), Options(out=tmp_path))
    assert not instant.computed


def test_a_missing_recipe_is_named(table, instant, tmp_path):
    scales = {"small": Scale(datasets=("cubes",), seeds=1)}
    with pytest.raises(ArgumentError, match=r"recipe .*cubes\.yaml does not exist"):
        reproduce(replace(table, scales=scales), Options(out=tmp_path))


def test_seeds_by_data_set():
    assert choose_seeds([], ["a", "b"], 3) == {"a": 3, "b": 3}
    assert choose_seeds(["b=2", "5"], ["a", "b"], 3) == {"a": 5, "b": 2}
