"""The README's table of speeds is what the committed results say."""

import json
import re
import statistics
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "xeon-amx-2-cores"
FILES = [RESULTS / name for name in ("float32.json", "bfloat16.json", "command-float32.json")]  # of single components
ZEN_5 = ROOT / "results" / "amd-zen5-2-cores"
KINDS = {  # files of float32 and of bfloat16, by the first words of a row
    "AMX": (RESULTS / "float32.json", RESULTS / "bfloat16.json"),
    "AVX-512": (ZEN_5 / "float32.json", ZEN_5 / "bfloat16.json"),
    "AVX2": (ZEN_5 / "float32-avx2.json", None),
}
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


def test_what_each_kind_of_cpu_gets():
    """A cell has our ratios to OpenVINO and to diffusers, in bfloat16 to OpenVINO alone."""
    pattern = r"^\| (AMX|AVX-512|AVX2)\b[^|]*\|[^|]*\| ([^|]*) \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$"
    rows = re.findall(pattern, (ROOT / "README.md").read_text(), re.M)
    assert [kind for kind, *_ in rows] == list(KINDS)
    components = ("unet", "vae_decoder", "text_encoder")
    for kind, *cells, half in rows:
        single, narrow = (None if path is None else json.loads(path.read_text())["ratios"] for path in KINDS[kind])
        for component, cell in zip(components, cells, strict=True):
            case = f"{component}_float32"
            assert cell == f"{single[f'{case}_openvino']:.2f}, {single[f'{case}_eager']:.2f}", (kind, component)
        expected = [] if narrow is None else [f"{narrow[f'{name}_bfloat16_openvino']:.2f}" for name in components]
        assert half == (", ".join(expected) or "no"), kind


def test_ratios_are_of_their_own_seconds():
    for path in [*FILES, *(path for paths in KINDS.values() for path in paths if path is not None)]:
        found = json.loads(path.read_text())
        for name, ratio in found["ratios"].items():
            ours, theirs = found["seconds"][f"{name.rpartition('_')[0]}_tvm"], found["seconds"][name]
            assert ratio == statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
