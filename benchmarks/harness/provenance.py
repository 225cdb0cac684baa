"""Where a number comes from: code, machine, versions."""

import hashlib
import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.harness.table import PROJECT

PACKAGES = (
    "torch",
    "lightning",
    "torchmetrics",
    "torch-geometric",
    "scikit-learn",
    "faiss",
    "numpy",
)
ALIASES = {"faiss": ("faiss-gpu", "faiss-cpu")}


def code_version(*packages: str) -> str:
    """Digest of the Python sources of packages.

    Example:
        >>> code_version("common") == code_version("common")
        True
    """
    hasher = hashlib.sha256()
    for package in packages:
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"no package {package}")
        root = Path(next(iter(spec.submodule_search_locations)))
        for path in sorted(root.rglob("*.py")):
            hasher.update(f"{package}/{path.relative_to(root).as_posix()}\0".encode())
            hasher.update(path.read_bytes() + b"\0")
    return hasher.hexdigest()


def commit() -> dict[str, Any]:
    """The commit of the checkout, and whether code or recipes differ; empty outside of git."""
    head = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", "*.py", "*.yaml", "pyproject.toml")
    return {"commit": head, "modified": bool(changes)} if head else {}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(PROJECT), *arguments], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        for name in ALIASES.get(package, (package,)):
            with suppress(PackageNotFoundError):
                found[name] = version(name)
    return found


def cores() -> int:
    """Processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine(threads: int) -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cores": cores(),
        "threads": threads,
    }


def cpu_model() -> str:
    if sys.platform == "darwin":
        query = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(query, capture_output=True, text=True).stdout.strip()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())
