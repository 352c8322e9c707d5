"""Each row of docs/reliability.md names a test that is there."""

import ast
import re

from utils.config import ROOT

TEXT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_every_row_of_the_fault_table_is_a_test():
    rows = [line for line in TEXT.splitlines() if line.startswith("|") and not re.match(r"\| (fault|---) ", line)]
    assert len(rows) >= 30
    for row in rows:
        assert row.count("|") == 6, row
        path, name = re.search(r"`(tests/\S+)::(\S+)` \|$", row).groups()
        functions = {
            node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)
        }
        assert name in functions, row
