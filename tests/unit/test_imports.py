"""Imports point one way: the rules of the design, held on every file, inside functions too."""

import ast
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import runtime

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {"build", "inference", "inference_basic_sd", "benchmark"}
PACKAGES = {"models", "compiler", "runtime", "schedulers", "backends", "benchmarks", "utils", "demo"}
TVM = {"tvm", "tvm_ffi"}
TORCH = {"torch", "diffusers", "transformers", "tomesd"}
TORCH_SIDE = {*TORCH, "numpy", "safetensors", "tokenizers", "huggingface_hub", "PIL"}
ANY = None

# Who may import what: packages of the project, and packages of others (the standard library is free).
RULES = {
    "utils": (set(), {"tqdm"}),
    "schedulers": ({"utils"}, {"numpy"}),
    "runtime": ({"schedulers", "utils"}, {"numpy", "tvm", "PIL", "tokenizers", "safetensors", "ml_dtypes"}),
    "models": ({"utils"}, TORCH_SIDE),
    "compiler": ({"models", "runtime", "utils"}, {*TVM, "torch", "numpy", "safetensors", "ml_dtypes"}),
    "backends": ({"models", "runtime", "schedulers", "utils"}, ANY),
    "demo": ({"backends", "models", "runtime", "schedulers", "utils"}, {*TORCH_SIDE, "torchmetrics"}),
    "benchmarks": (
        {"backends", "compiler", "models", "runtime", "utils"},  # single layers are compiled alone
        {"numpy", "PIL", "torch", "diffusers", "jinja2", "markupsafe", "matplotlib"},
    ),
    "build": ({"compiler", "utils"}, set()),
    "inference": ({"runtime", "utils"}, set()),
    "inference_basic_sd": ({"backends", "utils"}, set()),
    "benchmark": ({"benchmarks", "utils"}, set()),
}


def imported(source):
    """Yield line and dotted name of everything that ``source`` imports, by statement or by a name in a string."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "."
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def allowed(top, owner):
    ours, others = RULES[owner]
    if top in PACKAGES:
        return top == owner or top in ours
    return top in sys.stdlib_module_names or others is ANY or top in others


def violations(source, owner):
    """Return what ``source``, a file of the package or script ``owner``, imports against the rules."""
    found = []
    for line, name in imported(source):
        top = name.split(".")[0]
        if top in SCRIPTS:
            found.append(f"line {line}: {name} is a script")
        elif name.startswith("."):
            found.append(f"line {line}: relative import; write the whole name")
        elif not allowed(top, owner):
            found.append(f"line {line}: {owner} must not import {name}")
    return found


def files():
    scripts = [(path.stem, path) for path in ROOT.glob("*.py")]
    return sorted(scripts + [(name, path) for name in PACKAGES for path in (ROOT / name).rglob("*.py")])


@pytest.mark.parametrize(
    ("owner", "path"), [pytest.param(owner, path, id=str(path.relative_to(ROOT))) for owner, path in files()]
)
def test_imports_point_one_way(owner, path):
    assert owner in RULES, f"{path} is a new script: give it a rule here"
    assert violations(path.read_text(encoding="utf-8"), owner) == []


def test_every_package_has_a_rule():
    found = {path.parent.name for path in ROOT.glob("*/*.py") if not path.parent.name.startswith(".")}
    assert found - {"tests"} <= PACKAGES
    assert {"utils", "schedulers", "runtime"} <= found
    assert set(RULES) == PACKAGES | SCRIPTS


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.name)
def test_no_test_imports_a_script(path):
    assert [name for _, name in imported(path.read_text(encoding="utf-8")) if name.split(".")[0] in SCRIPTS] == []


@pytest.mark.parametrize(
    ("owner", "source"),
    [
        ("runtime", "import torch"),
        ("runtime", "def f():\n    import torch.nn as nn"),
        ("runtime", "try:\n    from diffusers import x\nexcept ImportError:\n    pass"),
        ("runtime", "if TYPE_CHECKING:\n    from transformers import x"),
        ("runtime", "import os, models.checkpoint"),
        ("runtime", "from compiler.target import x"),
        ("runtime", "import requests"),
        ("runtime", "import importlib\nimportlib.import_module('torch.nn')"),
        ("runtime", "__import__('tomesd')"),
        ("runtime", "from . import artifact"),
        ("schedulers", "from runtime import artifact"),
        ("schedulers", "import tvm"),
        ("models", "class A:\n    def f(self):\n        from tvm import relax"),
        ("models", "import runtime.artifact"),
        ("compiler", "import diffusers"),
        ("compiler", "from inference import main"),
        ("utils", "import numpy"),
        ("utils", "from schedulers import create"),
        ("backends", "import compiler"),
        ("backends", "import benchmark"),
        ("backends", "from benchmarks.workers import Worker"),
        ("benchmarks", "import openvino"),
        ("inference", "import torch"),
        ("inference", "from models import checkpoint"),
    ],
)
def test_a_planted_violation_is_found(owner, source):
    assert len(violations(source, owner)) == 1


@pytest.mark.parametrize(
    ("owner", "source"),
    [
        ("runtime", "from __future__ import annotations\nimport json, os.path\nimport tvm\nfrom runtime import engine"),
        ("runtime", "text = 'import torch'\nf('torch')"),
        ("models", "import torch.nn\nfrom diffusers import AutoencoderKL\nfrom models.layout import x"),
        ("backends", "import onnxruntime\nfrom runtime.pipeline import Pipeline"),
        ("inference", "def main():\n    from runtime.run import run"),
    ],
)
def test_what_is_allowed_passes(owner, source):
    assert violations(source, owner) == []


LOADED = "print(json.dumps([m for m in ('torch', 'diffusers', 'transformers', 'tvm') if sys.modules.get(m)]))"


def run_python(code):
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_the_runtime_works_where_torch_is_absent():
    """TVM's own Python imports torch where it finds it, so each module is loaded as if there were none."""
    names = [f"runtime.{module.name}" for module in pkgutil.iter_modules(runtime.__path__)]
    absent = "import json, sys\nsys.modules.update(dict.fromkeys(['torch', 'diffusers', 'transformers', 'tomesd']))\n"
    assert "runtime.engine" in names
    assert run_python(absent + f"import {', '.join(names)}\n" + LOADED) == ["tvm"]


@pytest.mark.parametrize("flags", [["--steps", "0"], ["--artifacts-dir", "none"], ["--help"]], ids=" ".join)
def test_inference_reads_no_tvm_before_it_must_and_no_torch(flags):
    code = f"""
import json, runpy, sys
sys.argv = ["inference.py", *{flags!r}]
try:
    runpy.run_path("inference.py", run_name="__main__")
except SystemExit:
    pass
"""
    assert run_python(code + LOADED) == []


def test_inference_loads_tvm_without_torch():
    code = """
import contextlib, json, sys
sys.path.insert(0, ".")
import runtime.run
runtime.run.run = lambda config: __import__("runtime.engine")
import runpy
sys.argv = ["inference.py"]
runpy.run_path("inference.py", run_name="__main__")
"""
    assert run_python(code + LOADED) == ["tvm"]
