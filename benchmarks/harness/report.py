"""One page of all recorded tables."""

import re
from pathlib import Path

from benchmarks.harness.render import RESULTS
from benchmarks.harness.store import write_text
from common.errors import RunError


def write_report(source: Path | None = None) -> Path:
    """Writes ``report.md`` into a folder of recorded tables, or of run folders.

    Args:
        source: default ``benchmarks/results`` of the project.

    Raises:
        RunError: there is no table.
    """
    folder = RESULTS if source is None else source
    pages = sorted(folder.glob("*/table.md"))
    if not pages:
        raise RunError(f"no table in {folder}; `clustrast reproduce TABLE --record` makes one")
    contents = "\n".join(f"- [{page.parent.name}](#{page.parent.name})" for page in pages)
    sections = [section(page) for page in pages]
    report = folder / "report.md"
    write_text(report, "\n\n".join(["# Reproduced tables", contents, *sections]) + "\n")
    return report


def section(page: Path) -> str:
    """A table's page as part of a larger one: headings one level down, links into its folder."""
    name = page.parent.name
    text = re.sub(r"^#", "##", page.read_text(encoding="utf-8").strip(), flags=re.MULTILINE)
    text = re.sub(r"!\[([^]]*)\]\(([^):]+)\)", rf"![\1]({name}/\2)", text)
    return f'<a id="{name}"></a>\n\n{text}\n\n[Page and records]({name})'
