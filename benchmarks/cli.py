"""Console script ``clustrast``. Nothing heavy is imported before a command needs it."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from common.errors import ArgumentError, ClustrastError

PROGRAM = "clustrast"
ENGINE = ("fit", "validate", "test", "predict")
USER_ERROR, INTERRUPTED = 2, 130


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        Exit status: 0 only if what was asked was done, 2 for an error the user can act on, 130
        after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    warnings.filterwarnings("ignore", message="`torch.jit.script")
    try:
        return dispatch(arguments)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ClustrastError, OSError) as error:
        if os.environ.get("CLUSTRAST_DEBUG"):
            raise
        print(f"{PROGRAM}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR


def dispatch(arguments: list[str]) -> int:
    command = arguments[0] if arguments else ""
    if command in ENGINE:
        return engine(arguments)
    parser, commands = make_parser()
    if command and not command.startswith("-"):
        from benchmarks.names import one_of

        arguments[0] = one_of("command", command, commands)
    options = parser.parse_args(arguments)
    if not hasattr(options, "run"):
        parser.print_help()
        return 0
    status: int = options.run(options)
    return status


def make_parser() -> tuple[Parser, list[str]]:
    """The parser and the names of its commands."""
    parser = Parser(
        prog=PROGRAM,
        description="Contrastive learning and clustering: published methods, reproduced.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, run: Callable[[Any], int], help: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help, description=help)
        made.set_defaults(run=run)
        return made

    p = command("methods", methods, "list the methods and the papers they come from")
    p.add_argument("--json", action="store_true", help="for programs")

    p = command("datasets", datasets, "list the data sets, or fetch one")
    p.add_argument("action", nargs="?", metavar="fetch", help="fetch: download and verify NAME")
    p.add_argument("name", nargs="?", metavar="NAME")
    p.add_argument("--json", action="store_true", help="for programs")

    for name in ENGINE:
        command(name, engine, f"LightningCLI: {name} any method on any data; see {name} --help")

    p = command("embed", embed, "write the embeddings of a data set under a checkpoint")
    p.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    p.add_argument("--data", required=True, metavar="NAME", help="data set")
    p.add_argument("--out", required=True, type=Path, metavar="FILE", help=".npz or .parquet")

    p = command("reproduce", reproduce, "reproduce a published table")
    p.add_argument("table", metavar="TABLE", help="such as scgc")
    p.add_argument("--scale", metavar="SCALE", help="small (default) or paper")
    p.add_argument("--datasets", nargs="+", metavar="NAME", help="instead of those of the scale")
    p.add_argument(
        "--rows", nargs="+", metavar="ROW", help="only these; optional rows are named here"
    )
    p.add_argument(
        "--seeds",
        nargs="+",
        default=[],
        metavar="N",
        help="number of seeds; NAME=N for one data set",
    )
    p.add_argument("--jobs", type=int, default=1, metavar="N", help="processes; default 1")
    p.add_argument("--out", type=Path, metavar="DIR", help="run folder; default runs/TABLE-SCALE")
    p.add_argument(
        "--reuse",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="take matching cells over from other run folders",
    )
    p.add_argument(
        "--selection",
        default="last",
        metavar="WHICH",
        help="shown first: last (default) epoch, or oracle (best epoch, chosen with labels)",
    )
    p.add_argument("--record", action="store_true", help="copy the outcome to benchmarks/results")
    p.add_argument("--json", action="store_true", help="print the outcome for programs")

    p = command("speed", speed, "measure ours against named peers")
    p.add_argument("name", metavar="NAME")
    p.add_argument(
        "rest", nargs=argparse.REMAINDER, metavar="...", help="options of that benchmark"
    )

    p = command("report", report, "one page of all recorded tables and plots")
    p.add_argument(
        "--from", dest="source", type=Path, metavar="DIR", help="default benchmarks/results"
    )
    return parser, list(commands.choices)


def methods(options: argparse.Namespace) -> int:
    from benchmarks import listing

    listing.methods(options.json)
    return 0


def datasets(options: argparse.Namespace) -> int:
    from benchmarks import listing
    from benchmarks.names import one_of

    if options.action is None:
        listing.datasets(options.json)
        return 0
    one_of("action of datasets", options.action, ["fetch"])
    if options.name is None:
        raise ArgumentError("datasets fetch needs the NAME of a data set")
    listing.fetch_dataset(options.name)
    return 0


def engine(arguments: list[str]) -> int:
    from benchmarks.harness.recipes import run_engine

    run_engine(arguments)
    return 0


def embed(options: argparse.Namespace) -> int:
    from benchmarks.harness.embedding import embed_checkpoint

    arrays = embed_checkpoint(options.checkpoint, options.data, options.out)
    shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
    print(f"{options.out}: {shapes}")
    return 0


def reproduce(options: argparse.Namespace) -> int:
    from benchmarks.harness.table import load_table

    table = load_table(options.table)

    from benchmarks.harness.reproduce import Options
    from benchmarks.harness.reproduce import reproduce as run

    given = {k: v for k, v in vars(options).items() if k not in ("run", "table")}
    return run(table, Options(**given))


def speed(options: argparse.Namespace) -> int:
    from importlib import import_module

    from benchmarks.names import one_of

    folder = Path(__file__).parent / "speed"
    names = sorted(path.stem for path in folder.glob("[!_]*.py"))
    name = one_of("speed benchmark", options.name, names)
    return import_module(f"benchmarks.speed.{name}").main(options.rest) or 0


def report(options: argparse.Namespace) -> int:
    from benchmarks.harness.report import write_report

    print(write_report(options.source))
    return 0


if __name__ == "__main__":
    sys.exit(main())
