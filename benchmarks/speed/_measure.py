"""Time and peak memory of contenders, each in a fresh process, in turn, several rounds."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from common.errors import RunError, require

LONG_STEP = 20.0  # seconds


@dataclass(frozen=True)
class Measurement:
    """Median seconds of a step, peak resident memory above that after the imports, in MiB, and the
    objective it reached, if it has one.
    """

    seconds: float
    mebibytes: float
    objective: float | None = None


def measure(prepare: Callable[[], Callable[[], object]], steps: int, threads: int) -> Measurement:
    """Measures in this process: ``prepare`` loads what a step needs and returns the step.

    Memory counts from before ``prepare``, so that inputs, weights and optimiser are part of it. A
    step that reaches an objective returns a function that evaluates it, outside of the timing.
    """
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    _reset_peak()
    before = _status("VmRSS")
    step = prepare()
    first, reached = _timed(step)
    seconds = [first]
    if first < LONG_STEP:  # otherwise warming up makes no difference
        seconds = [_timed(step)[0] for _ in range(steps)]
    mebibytes = (_status("VmHWM") - before) / 1024
    objective = reached() if callable(reached) else None
    return Measurement(statistics.median(seconds), mebibytes, objective)


def _timed(step: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    reached = step()
    return time.perf_counter() - start, reached


def compare(
    module: str, contenders: Iterable[str], rounds: int, threads: int
) -> dict[str, Measurement]:
    """Runs ``python -m module --contender NAME`` in turn, ``rounds`` times; medians."""
    results: dict[str, list[Measurement]] = {name: [] for name in contenders}
    limited = {**os.environ, "OMP_NUM_THREADS": str(threads)}  # not every peer can be told
    turns = [name for _ in range(rounds) for name in results]
    for name in track(turns, description="measuring", console=Console(stderr=True)):
        command = [sys.executable, "-m", module, "--contender", name, "--threads", str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=limited)
        if done.returncode:
            raise RunError(f"contender {name!r} failed: {done.stderr.strip().splitlines()[-1:]}")
        results[name].append(Measurement(**json.loads(done.stdout.splitlines()[-1])))
    return {
        name: Measurement(
            statistics.median(m.seconds for m in measured),
            statistics.median(m.mebibytes for m in measured),
            measured[0].objective,
        )
        for name, measured in results.items()
    }


@dataclass(frozen=True)
class Goal:
    """``ours`` against ``peer``: at most these ratios of time and memory (None: no goal).

    With ``objective``, at most this ratio of objectives, time and memory are compared at an
    equal one: a peer whose own is worse than ours by more than this sets no goal for them.
    """

    ours: str
    peer: str
    time: float | None = None
    memory: float | None = None
    objective: float | None = None

    def ratios(self, results: dict[str, Measurement]) -> dict[str, float | bool | None]:
        """Ours over the peer's, and whether that meets the goal."""
        ours, peer = results[self.ours], results[self.peer]
        time, memory = ours.seconds / peer.seconds, ours.mebibytes / peer.mebibytes
        quality = ours.objective / peer.objective if ours.objective and peer.objective else None
        met = (self.time is None or time <= self.time) and (
            self.memory is None or memory <= self.memory
        )
        equal = True
        if self.objective is not None and quality is not None:
            equal = quality >= 1 / self.objective
            met = quality <= self.objective and (met or not equal)
        return {
            "time_ratio": time,
            "memory_ratio": memory,
            "objective_ratio": quality,
            "equal_objective": equal,
            "met": met,
        }


@dataclass(frozen=True)
class Limit:
    """``ours`` in at most this much memory, for sizes that no peer can do."""

    ours: str
    mebibytes: float


def report(
    results: dict[str, Measurement],
    goals: Iterable[Goal],
    as_json: bool,
    limits: Iterable[Limit] = (),
) -> int:
    """Prints measurements and ratios; returns 0 if every goal is met, else 1."""
    ratios = [{**asdict(goal), **goal.ratios(results)} for goal in goals]
    kept = [
        {**asdict(limit), "met": results[limit.ours].mebibytes <= limit.mebibytes}
        for limit in limits
    ]
    if as_json:
        measured = {name: asdict(result) for name, result in results.items()}
        print(json.dumps({"measurements": measured, "ratios": ratios, "limits": kept}, indent=2))
    else:
        console = Console()
        scored = any(result.objective is not None for result in results.values())
        table = Table("contender", "s / step", "peak MiB", *["objective"] * scored)
        for name, result in results.items():
            reached = "" if result.objective is None else f"{result.objective:.6g}"
            cells = [name, f"{result.seconds:.4f}", f"{result.mebibytes:.0f}"]
            table.add_row(*cells, *[reached] * scored)
        console.print(table)
        compared = {"time": 2, "memory": 2} | ({"objective": 4} if scored else {})
        headings = [heading for what in compared for heading in (what, "goal")]
        table = Table("ours / peer", *headings, "met")
        for ratio in ratios:
            cells = [f"{ratio['ours']} / {ratio['peer']}"]
            for what, digits in compared.items():
                value, goal = ratio[f"{what}_ratio"], ratio[what]
                cells.append("" if value is None else f"{value:.{digits}f}")
                cells.append("" if goal is None else f"≤ {goal}")
            met = "yes" if ratio["met"] else "no"
            table.add_row(*cells, met if ratio["equal_objective"] else f"{met}, peer's is worse")
        console.print(table)
        for limit in kept:
            met = "yes" if limit["met"] else "no"
            console.print(f"{limit['ours']}: at most {limit['mebibytes']:g} MiB: {met}")
    return 0 if all(line["met"] for line in (*ratios, *kept)) else 1


def run(
    name: str,
    prepare: Callable[[str], Callable[[], object]],
    contenders: Sequence[str],
    goals: Iterable[Goal],
    argv: Sequence[str] | None,
    steps: int = 5,
    missing: Callable[[str], str | None] = lambda contender: None,
    peers: Mapping[str, str] | None = None,
    limits: Iterable[Limit] = (),
) -> int:
    """The command ``clustrast speed NAME``; with ``--contender`` the process of one of them.

    Args:
        prepare: from a contender to its step, see :func:`measure`.
        steps: timed steps of a process, after one that is not timed; a step of more than
            ``LONG_STEP`` is taken once.
        missing: what keeps a contender from running here; it is then skipped with that message.
        peers: the module that a contender imports, before it is measured; missing if it is not
            installed.
        limits: of memory, beside the goals.
    """
    peers = peers or {}
    module = f"benchmarks.speed.{name}"
    parser = argparse.ArgumentParser(prog=f"clustrast speed {name}")
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes a contender")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads a contender")
    parser.add_argument("--only", nargs="+", help="contenders with one of these in their names")
    parser.add_argument("--json", action="store_true", help="print the measurements as JSON")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    require(args.rounds >= 1, "--rounds", args.rounds, "at least 1")
    require(args.threads >= 1, "--threads", args.threads, "at least 1")
    if args.contender is None:
        chosen = [c for c in contenders if not args.only or any(text in c for text in args.only)]
        require(bool(chosen), "--only", args.only, f"part of one of {contenders}")
        for contender in chosen.copy():
            if reason := not_installed(peers.get(contender)) or missing(contender):
                print(f"skipped {contender}: {reason}", file=sys.stderr)
                chosen.remove(contender)
        goals = [goal for goal in goals if {goal.ours, goal.peer} <= set(chosen)]
        limits = [limit for limit in limits if limit.ours in chosen]
        results = compare(module, chosen, args.rounds, args.threads)
        return report(results, goals, args.json, limits)
    require(args.contender in contenders, "contender", args.contender, f"one of {contenders}")
    import lightning  # noqa: F401  (imports are not part of what is measured)
    import torch_geometric.data  # noqa: F401

    if args.contender in peers:
        import_module(peers[args.contender])
    print(json.dumps(asdict(measure(lambda: prepare(args.contender), steps, args.threads))))
    return 0


def not_installed(module: str | None) -> str | None:
    """Says so if a module, or the package it is in, is not installed."""
    if module is None or find_spec(package := module.partition(".")[0]):
        return None
    return f"{package} is not installed"


def _status(field: str) -> int:
    """A field of this process's memory status, KiB (Linux)."""
    status = Path("/proc/self/status")
    if not status.exists():
        raise RunError("memory is measured through /proc/self/status, which only Linux has")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines[field].split()[0])


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")
