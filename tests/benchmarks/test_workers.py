"""Real processes: training in workers, workers that die, kills and Ctrl-C from outside."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import psutil
import pytest

from benchmarks.harness.plan import plan
from benchmarks.harness.reproduce import Options, reproduce
from benchmarks.harness.schedule import Failed, Started, Worker, work
from benchmarks.harness.table import PROJECT
from common.errors import RunError
from tests.benchmarks.tiny import tiny_table

pytestmark = pytest.mark.usefixtures("no_plots")

ALL = 8
PATIENCE = 120.0
SLOW = 0.2


def records(folder):
    return {
        path.name: (path.stat().st_mtime_ns, json.loads(path.read_text()))
        for path in folder.glob("cells/*/*.json")
    }


def test_two_workers_train_and_one_of_them_dies(tmp_path, capsys):
    table = tiny_table({"accident": "kill", "accident_seed": 0})
    assert reproduce(table, Options(out=tmp_path, jobs=2)) == 1
    kept = {(record["row"], record["seed"]): record for _, record in records(tmp_path).values()}
    assert len(kept) == ALL - 1
    assert ("alpha = 0", 0) not in kept
    said = capsys.readouterr().err
    assert "its process died (SIGKILL)" in said
    assert "logs/blobs/alpha-0-seed0-" in said

    record = kept["alpha", 0]
    assert record["epochs"] == 3
    assert len(record["history"]) == 4, "before the first step and after each epoch"
    assert sum(record["history"][0]["sizes"]) == 60
    for metric, value in record["metrics"]["oracle"].items():
        values = [entry[metric] for entry in record["history"]]
        assert value == max(values) >= record["metrics"]["last"][metric] == values[-1]
        assert values[record["metrics"]["oracle_epoch"][metric]] == value
    assert record["starts_from"] == kept["start", 0]["key"]
    assert kept["alpha", 0]["history"] != kept["alpha", 1]["history"]
    assert record["settings"]["model"]["init_args"]["autoencoder"] is None
    assert record["machine"]["threads"] == max(1, record["machine"]["cores"] // 2)
    assert kept["features", 0]["metrics"]["last"] == kept["features", 0]["metrics"]["oracle"]
    assert {path.stem for path in tmp_path.glob("projections/*.npz")} == {
        record["key"] for record in kept.values() if record["seed"] == 0
    }


def test_a_cell_that_raises_takes_only_those_that_start_from_it(tmp_path, capsys):
    table = tiny_table({"accident": "raise", "accident_seed": 1})
    options = Options(out=tmp_path, rows=["alpha = 0"])
    assert reproduce(table, options) == 1
    said = capsys.readouterr().err
    assert "accident must be absent, got raise" in said
    assert "Traceback" not in said
    (log,) = tmp_path.glob("logs/blobs/alpha-0-seed1-*.log")
    assert "Traceback" in log.read_text()
    assert sorted((r["row"], r["seed"]) for _, r in records(tmp_path).values()) == [
        ("alpha = 0", 0),
        ("start", 0),
        ("start", 1),
    ]


def test_a_log_that_cannot_be_written_is_a_failed_cell(tmp_path):
    (tmp_path / "logs").write_text("in the way")
    said = []

    class Connection:
        cells: ClassVar = [planned()]
        send = staticmethod(said.append)

        def recv(self):
            if not self.cells:
                raise EOFError
            return self.cells.pop()

    work(Connection(), tmp_path, "command", threads=1)
    ((kind, reason),) = said
    assert kind == "failed"
    assert "logs" in reason


def test_a_worker_that_died_while_idle_fails_its_next_cell_only(tmp_path):
    worker = Worker(tmp_path, "command", threads=1)
    worker.process.kill()
    worker.process.join()
    cell = planned()
    assert worker.start(cell) == Started(cell)
    event = worker.receive()
    assert event == Failed(cell, "its process died (SIGKILL)")
    worker.stop()


def planned():
    table = tiny_table()
    return plan(table, "small", ["blobs"], {"blobs": 1}, table.choose_rows(["features"]))[0]


class Reproduction:
    """``python -m tests.benchmarks.tiny`` in the background."""

    def __init__(self, folder: Path, jobs: int):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.tiny", str(folder), str(SLOW), str(jobs)],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for_records(self, count: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while len(list(self.folder.glob("cells/*/*.json"))) < count:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, "no records"
            time.sleep(0.05)
        time.sleep(random.random() / 2)

    def end(self, number: signal.Signals) -> tuple[str, str]:
        """Sends the signal; waits until the process and all its workers are gone."""
        family = [
            psutil.Process(self.process.pid),
            *psutil.Process(self.process.pid).children(recursive=True),
        ]
        assert len(family) > 1
        if number == signal.SIGINT:  # a terminal sends it to the whole group
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        output = self.process.communicate(timeout=30)
        _, alive = psutil.wait_procs(family, timeout=10)
        assert not alive, "orphans"
        return output


def test_kills_and_interrupts_lose_and_repeat_nothing(tmp_path):
    first = Reproduction(tmp_path, jobs=2)
    first.wait_for_records(2)
    with pytest.raises(RunError, match=f"process {first.process.pid}"):
        reproduce(tiny_table(), Options(out=tmp_path))
    first.end(signal.SIGKILL)
    after_kill = records(tmp_path)
    assert len(after_kill) >= 2

    second = Reproduction(tmp_path, jobs=1)
    second.wait_for_records(len(after_kill) + 1)
    _, said = second.end(signal.SIGINT)
    assert second.process.returncode == 130
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    after_interrupt = records(tmp_path)
    assert after_interrupt.items() >= after_kill.items(), "a finished cell was repeated"
    assert not list(tmp_path.rglob("*.tmp"))

    assert reproduce(tiny_table(seconds_per_epoch=SLOW), Options(out=tmp_path)) == 0
    finished = records(tmp_path)
    assert len(finished) == ALL
    assert finished.items() >= after_interrupt.items(), "a finished cell was repeated"
    assert len({record["key"] for _, record in finished.values()}) == ALL
