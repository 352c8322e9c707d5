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
        path, *classes, name = re.search(r"`(tests/\S+)` \|$", row)[1].split("::")
        nodes = ast.parse((ROOT / path).read_text()).body
        for outer in classes:
            (nodes,) = (node.body for node in nodes if isinstance(node, ast.ClassDef) and node.name == outer)
        assert name in {node.name for node in nodes if isinstance(node, ast.FunctionDef)}, row
