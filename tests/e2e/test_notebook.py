"""notebooks/latency.ipynb: its cells run one after the other, and what they say is so."""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "latency.ipynb"
END = """
assert [pixels.shape for pixels in pair] == [(128, 128, 3)] * 2 and quality >= 40
ratios = [row["ratio"] for row in json.loads((OUTPUT / "benchmark.json").read_text())["backends"]]
assert ratios[0] > 0 and ratios[1] is None
"""


def code():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_cells_run(tmp_path):
    place = 'OUTPUT = Path("outputs/notebook")'
    source = "\n".join([*code(), END])
    assert source.count(place) == 1
    source = source.replace(place, f"OUTPUT = Path({str(tmp_path)!r})")
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=NOTEBOOK.parent, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a step" in done.stdout and "TVMerge" in done.stdout and " dB" in done.stdout
    trace = json.loads((tmp_path / "both.trace.json").read_text())
    assert len({event["pid"] for event in trace["traceEvents"]}) == 2
    assert {path.name for path in tmp_path.glob("*.png")} == {"diffusers.png", "compiled.png"}


def test_its_pictures_and_tables_are_kept():
    """Whoever reads it without running it sees what came out."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    kinds = {kind for cell in cells for output in cell["outputs"] for kind in output.get("data", {})}
    assert "image/png" in kinds and all(cell["outputs"] for cell in cells[1:])
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert "Traceback" not in text and not re.search(r"[ \"]/(home|root|tmp|work)/", text)
