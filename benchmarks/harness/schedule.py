"""Runs cells in worker processes: each as soon as the one it starts from is done."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from benchmarks.harness.plan import Cell
from benchmarks.harness.store import Record, log_path

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Started:
    cell: Cell


@dataclass(frozen=True)
class Epoch:
    cell: Cell
    done: int
    total: int


@dataclass(frozen=True)
class Done:
    cell: Cell
    record: Record


@dataclass(frozen=True)
class Failed:
    cell: Cell
    reason: str


Event = Started | Epoch | Done | Failed


class Worker:
    """A process that computes one cell after the other, and what it is busy with."""

    def __init__(self, folder: Path, command: str, threads: int):
        context = multiprocessing.get_context("spawn")
        self.connection, remote = context.Pipe()
        self.process = context.Process(
            target=work, args=(remote, folder, command, threads), daemon=True
        )
        with untouched_by_ctrl_c(), environment(dict.fromkeys(THREAD_VARIABLES, str(threads))):
            self.process.start()
        remote.close()
        self.cell: Cell | None = None

    def start(self, cell: Cell) -> Started:
        self.cell = cell
        with suppress(BrokenPipeError):  # a process that died is noticed when it is listened to
            self.connection.send(cell)
        return Started(cell)

    def receive(self) -> Event:
        """The next message of the process; its death is one as well."""
        assert self.cell is not None
        try:
            kind, *contents = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            return Failed(self.cell, f"its process died {how(self.process.exitcode)}")
        if kind == "epoch":
            return Epoch(self.cell, *contents)
        return Done(self.cell, *contents) if kind == "done" else Failed(self.cell, *contents)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def run(
    cells: Sequence[Cell], folder: Path, *, jobs: int, threads: int, command: str
) -> Generator[Event, None, None]:
    """Computes cells and tells what happens.

    A cell that fails takes those that start from it with it; all others go on. Closing the iterator
    stops the workers.

    Args:
        cells: all to be computed; one that they start from and that is not among them is done.
        folder: run folder, for checkpoints, embeddings and logs.
        jobs: number of processes.
        threads: of each process.
        command: for the records.
    """
    waiting = list(cells)
    unfinished = {cell.key for cell in cells}
    failed: set[str] = set()
    workers: list[Worker] = []
    try:
        while waiting or any(worker.cell for worker in workers):
            for cell in [cell for cell in waiting if cell.starts_from in failed]:
                waiting.remove(cell)
                failed.add(cell.key)
                yield Failed(cell, "the cell it starts from failed")
            for cell in [cell for cell in waiting if cell.starts_from not in unfinished]:
                worker = next((worker for worker in workers if not worker.cell), None)
                if worker is None:
                    if len(workers) == jobs:
                        break
                    worker = Worker(folder, command, threads)
                    workers.append(worker)
                waiting.remove(cell)
                yield worker.start(cell)

            busy = {worker.connection: worker for worker in workers if worker.cell}
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                event = worker.receive()
                if not isinstance(event, Epoch):
                    worker.cell = None
                    unfinished.discard(event.cell.key)
                if isinstance(event, Failed):
                    failed.add(event.cell.key)
                    if not worker.process.is_alive():
                        worker.stop()
                        workers.remove(worker)
                yield event
    finally:
        for worker in workers:
            worker.stop()


def how(exitcode: int | None) -> str:
    """How a process ended.

    Example:
        >>> how(-9), how(1)
        ('(SIGKILL)', '(exit status 1)')
    """
    if exitcode is not None and exitcode < 0:
        return f"({signal.Signals(-exitcode).name})"
    return f"(exit status {exitcode})"


@contextmanager
def untouched_by_ctrl_c() -> Iterator[None]:
    """Processes started here leave Ctrl-C to this one."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets environment variables for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def work(connection: Connection, folder: Path, command: str, threads: int) -> None:
    """Body of a worker process: computes the cells it is sent."""
    threading.Thread(target=follow_parent, daemon=True).start()
    while True:
        try:
            cell: Cell = connection.recv()
        except EOFError:
            return
        message: tuple
        try:
            with logged_to(log_path(folder, cell)):
                import torch

                from benchmarks.harness.cells import compute

                torch.set_num_threads(threads)
                report = lambda done, total: connection.send(("epoch", done, total))  # noqa: E731
                message = ("done", compute(cell, folder, command, report))
        except Exception as error:
            first_line = (str(error).splitlines() or [""])[0]
            message = ("failed", first_line or type(error).__name__)
        connection.send(message)


def follow_parent() -> None:
    """Ends this process when the one that started it is gone, however that happened."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Sends everything this process prints to a file, native code and tracebacks included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = os.dup(1), os.dup(2)
    with path.open("w", buffering=1, encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            with redirect_stdout(log), redirect_stderr(log):
                yield
        except Exception:
            traceback.print_exc(file=log)
            raise
        finally:
            for number, descriptor in enumerate(kept, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)
