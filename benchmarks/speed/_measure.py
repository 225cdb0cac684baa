"""Time and peak memory of contenders, each in a fresh process, in turn, several rounds."""

import argparse
import json
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
    """Median seconds of a step, and peak resident memory above that after the imports, in MiB."""

    seconds: float
    mebibytes: float


def measure(prepare: Callable[[], Callable[[], object]], steps: int, threads: int) -> Measurement:
    """Measures in this process: ``prepare`` loads what a step needs and returns the step.

    Memory counts from before ``prepare``, so that inputs, weights and optimiser are part of it.
    """
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    _reset_peak()
    before = _status("VmRSS")
    step = prepare()
    seconds = [_timed(step)]
    if seconds[0] < LONG_STEP:  # otherwise warming up makes no difference
        seconds = [_timed(step) for _ in range(steps)]
    return Measurement(statistics.median(seconds), (_status("VmHWM") - before) / 1024)


def _timed(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def compare(
    module: str, contenders: Iterable[str], rounds: int, threads: int
) -> dict[str, Measurement]:
    """Runs ``python -m module --contender NAME`` in turn, ``rounds`` times; medians."""
    results: dict[str, list[Measurement]] = {name: [] for name in contenders}
    turns = [name for _ in range(rounds) for name in results]
    for name in track(turns, description="measuring", console=Console(stderr=True)):
        command = [sys.executable, "-m", module, "--contender", name, "--threads", str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RunError(f"contender {name!r} failed: {done.stderr.strip().splitlines()[-1:]}")
        results[name].append(Measurement(**json.loads(done.stdout.splitlines()[-1])))
    return {
        name: Measurement(
            statistics.median(m.seconds for m in measured),
            statistics.median(m.mebibytes for m in measured),
        )
        for name, measured in results.items()
    }


@dataclass(frozen=True)
class Goal:
    """``ours`` against ``peer``: at most these ratios of time and memory (None: no goal)."""

    ours: str
    peer: str
    time: float | None = None
    memory: float | None = None


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
    ratios = [
        {
            **asdict(goal),
            "time_ratio": results[goal.ours].seconds / results[goal.peer].seconds,
            "memory_ratio": results[goal.ours].mebibytes / results[goal.peer].mebibytes,
        }
        for goal in goals
    ]
    for ratio in ratios:
        ratio["met"] = (ratio["time"] is None or ratio["time_ratio"] <= ratio["time"]) and (
            ratio["memory"] is None or ratio["memory_ratio"] <= ratio["memory"]
        )
    kept = [
        {**asdict(limit), "met": results[limit.ours].mebibytes <= limit.mebibytes}
        for limit in limits
    ]
    if as_json:
        measured = {name: asdict(result) for name, result in results.items()}
        print(json.dumps({"measurements": measured, "ratios": ratios, "limits": kept}, indent=2))
    else:
        console = Console()
        table = Table("contender", "s / step", "peak MiB")
        for name, result in results.items():
            table.add_row(name, f"{result.seconds:.4f}", f"{result.mebibytes:.0f}")
        console.print(table)
        table = Table("ours / peer", "time", "goal", "memory", "goal", "met")
        for ratio in ratios:
            table.add_row(
                f"{ratio['ours']} / {ratio['peer']}",
                f"{ratio['time_ratio']:.2f}",
                "" if ratio["time"] is None else f"≤ {ratio['time']}",
                f"{ratio['memory_ratio']:.2f}",
                "" if ratio["memory"] is None else f"≤ {ratio['memory']}",
                "yes" if ratio["met"] else "no",
            )
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
    peers: Mapping[str, str] | None = None,
    limits: Iterable[Limit] = (),
) -> int:
    """The command ``clustrast speed NAME``; with ``--contender`` the process of one of them.

    Args:
        prepare: from a contender to its step, see :func:`measure`.
        steps: timed steps of a process, after one that is not timed; a step of more than
            ``LONG_STEP`` is taken once.
        peers: the module that a contender imports; where it is not installed, the contender and
            its goals are skipped with a message.
        limits: of memory, beside the goals.
    """
    peers = peers or {}
    module = f"benchmarks.speed.{name}"
    parser = argparse.ArgumentParser(prog=f"clustrast speed {name}")
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes a contender")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads a contender")
    parser.add_argument("--json", action="store_true", help="print the measurements as JSON")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    require(args.rounds >= 1, "--rounds", args.rounds, "at least 1")
    require(args.threads >= 1, "--threads", args.threads, "at least 1")
    if args.contender is None:
        missing = {c for c, peer in peers.items() if find_spec(peer.partition(".")[0]) is None}
        for contender in sorted(missing):
            print(f"skipped: {contender} ({peers[contender]} is not installed)", file=sys.stderr)
        present = [contender for contender in contenders if contender not in missing]
        results = compare(module, present, args.rounds, args.threads)
        return report(results, [g for g in goals if g.peer not in missing], args.json, limits)
    require(args.contender in contenders, "contender", args.contender, f"one of {contenders}")
    import lightning  # noqa: F401  (imports are not part of what is measured)
    import torch_geometric.data  # noqa: F401

    if args.contender in peers:
        import_module(peers[args.contender])

    print(json.dumps(asdict(measure(lambda: prepare(args.contender), steps, args.threads))))
    return 0


def _status(field: str) -> int:
    """A field of this process's memory status, KiB (Linux)."""
    status = Path("/proc/self/status")
    if not status.exists():
        raise RunError("memory is measured through /proc/self/status, which only Linux has")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines[field].split()[0])


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")
