"""Fixtures of the whole suite."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.data import data_root

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in a shell's background job; the processes that tests interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers, in whatever order and company it runs."""
    torch.manual_seed(0)


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """``real_data(name)`` is the folder of a data set under the data root; a test that asks for one
    that is not there is skipped, and fails in CI."""

    def folder(name: str) -> Path:
        path = data_root() / name
        if not path.is_dir():
            reason = f"data set {name} is not under {data_root()} (set CLUSTRAST_DATA)"
            if os.environ.get("CI") == "true":
                pytest.fail(reason)
            pytest.skip(reason)
        return path

    return folder
