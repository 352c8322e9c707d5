"""The README's table of speeds is what the committed results say."""

import json
import re
import statistics
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "xeon-amx-2-cores"
FILES = [RESULTS / name for name in ("float32.json", "bfloat16.json", "command-float32.json")]  # of single components
COMPONENTS = {
    "UNet, batch of 2": "unet",
    "VAE decoder": "vae_decoder",
    "text encoder": "text_encoder",
    "20 steps from the command line": "command",
}


def results():
    merged = {"ratios": {}, "seconds": {}}
    for path in FILES:
        for name, values in merged.items():
            values.update(json.loads(path.read_text())[name])
    return merged


def test_each_figure_of_the_table():
    rows = re.findall(
        r"^\| ([^|]+), (float32|bfloat16) \| ([^|]+) \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$",
        (ROOT / "README.md").read_text(),
        re.M,
    )
    assert len(rows) == 7
    known = results()
    for title, dtype, ours, *ratios in rows:
        case = f"{COMPONENTS[title]}_{dtype}"
        value, unit = ours.split()
        seconds = statistics.median(known["seconds"][f"{case}_tvm"])
        assert value == (f"{seconds:.2f}" if unit == "s" else f"{seconds * 1000:.0f}")
        for backend, ratio in zip(("openvino", "eager", "compile"), ratios, strict=True):
            expected = known["ratios"].get(f"{case}_{backend}")
            assert ratio.strip() == ("" if expected is None else f"{expected:.2f}"), (title, dtype, backend)


def test_ratios_are_of_their_own_seconds():
    for path in FILES:
        found = json.loads(path.read_text())
        for name, ratio in found["ratios"].items():
            ours, theirs = found["seconds"][f"{name.rpartition('_')[0]}_tvm"], found["seconds"][name]
            assert ratio == statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
