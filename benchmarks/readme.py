"""The README's tables, written from committed results: ``python -m benchmarks.readme``.

A table stands between ``<!-- results/FILE.json SECTION -->`` and ``<!-- end -->``; what is there is replaced.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import report_profiles, report_tables, schema
from benchmarks.report_tables import Cell, Row, Table
from utils.config import ROOT
from utils.errors import UserError
from utils.files import write_whole

PLACE = re.compile(r"(<!-- (results/\S+\.json) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
README = ROOT / "README.md"
TABLES: dict[str, Callable[[list[Any]], Table]] = {
    "backends": report_tables.backend_times,
    "ladder": report_tables.ladder,
    "throughput": report_tables.throughput,
    "latency": report_tables.latency,
    "tome_sweep": report_tables.tome,
    "profiles": report_profiles.steps,
}


def written(text: str, root: Path) -> str:
    """Return ``text`` with the tables of the results that it names, which lie relative to ``root``.

    Raises:
        UserError: a file can't be read, has no such section, or nothing in it.
    """

    def table(match: re.Match[str]) -> str:
        begin, file, section, end = match.groups()
        results = schema.read(root / file)
        if section not in TABLES:
            raise UserError(f"{file}: there is no table of {section!r}; there are {', '.join(TABLES)}")
        rows = getattr(results, section)
        if not rows:
            raise UserError(f"{file} has nothing in {section}")
        return f"{begin}{_markdown(TABLES[section](rows))}\n\n{_origin(results, file)}\n{end}"

    return PLACE.sub(table, text)


def _markdown(table: Table) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *(_cells(row, len(table.columns)) for row in table.rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(row: Row, count: int) -> list[str]:
    cells = [_text(cell) for cell in row.cells]
    return [*cells, row.skipped, *[""] * count][:count] if row.skipped else cells


def _text(cell: Cell) -> str:
    return f"{cell.text} ({cell.small})" if cell.small else cell.text


def _origin(results: schema.Results, file: str) -> str:
    place, settings = results.environment, results.settings
    words = [f"{settings['model']}, {settings['dtype']}, {settings['steps']} steps", place.cpu]
    words += [f"{place.threads} threads", f"commit {place.commit}", report_tables.date(place.date)]
    return f"*{'; '.join(words)}: [{Path(file).name}]({file}).*"


def main() -> None:
    """Write the README's tables."""
    try:
        write_whole(README, written(README.read_text(encoding="utf-8"), ROOT))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
