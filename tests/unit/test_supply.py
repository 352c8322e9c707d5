"""What the project is made of: pinned versions with hashes, and no way to run what a file says."""

import ast
import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from utils.config import ROOT

SOURCES = sorted(  # but tests, which make the pickles that are to be refused
    path
    for path in ROOT.rglob("*.py")
    if not any(part.startswith(".") or part == "tests" for part in path.relative_to(ROOT).parts)
)
LOCKED_FOR = {"python_version": "3.11"}
LOADERS = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}  # what they read, they run


def requirements(name):
    """Return the requirements of a file and of those that it includes, for the Python that the lock is for."""
    found = []
    for line in (ROOT / name).read_text().splitlines():
        line = line.partition(" #")[0].strip()
        if line.startswith("-r "):
            found += requirements(line[3:])
        elif line and not line.startswith("#"):
            found.append(Requirement(line))
    return [r for r in found if r.marker is None or r.marker.evaluate(LOCKED_FOR)]


def locked():
    """Return version and hashes of each locked package."""
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements-lock.txt").read_text().replace("\\\n", " "))
    found = {}
    for entry in filter(str.strip, entries):
        name, version = re.match(r"([\w.-]+)==(\S+)", entry).groups()
        found[canonicalize_name(name)] = version, re.findall(r"--hash=sha256:([0-9a-f]{64})", entry)
    return found


def test_the_lock_meets_the_requirements_and_hashes_all_but_torch():
    lock = locked()
    assert len(lock) > 50 and all(hashes for _, hashes in lock.values())
    for requirement in requirements("requirements-dev.txt"):
        name = canonicalize_name(requirement.name)
        assert name == "torch" or requirement.specifier.contains(lock[name][0]), requirement


def forbidden(tree):
    """Yield the calls and imports of a module that run what a string, a shell line or a file says."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (name for name in names if name.partition(".")[0] in LOADERS)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in ("eval", "exec", "os.system", "os.popen", "yaml.load"):
            yield called
        if called == "torch.load" and not any(ast.unparse(k) == "weights_only=True" for k in node.keywords):
            yield called
        for keyword in node.keywords:
            if keyword.arg in ("shell", "allow_pickle", "trust_remote_code") and ast.unparse(keyword.value) != "False":
                yield f"{called}({keyword.arg})"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import pickle", ["pickle"]),
        ("from joblib import load", ["joblib"]),
        ("subprocess.run('ls', shell=True)", ["subprocess.run(shell)"]),
        ("np.load(f, allow_pickle=yes)", ["np.load(allow_pickle)"]),
        ("eval(text); model.eval(); torch.load(f)", ["eval", "torch.load"]),
        ("torch.load(f, weights_only=True)", []),
        ("subprocess.run(['ls'], shell=False)", []),
    ],
)
def test_the_search_finds_what_it_looks_for(text, found):
    assert list(forbidden(ast.parse(text))) == found


def test_nothing_runs_what_a_file_says():
    assert len(SOURCES) > 100
    found = {path.name: list(forbidden(ast.parse(path.read_text(encoding="utf-8")))) for path in SOURCES}
    assert not {name: what for name, what in found.items() if what}


def test_ruffs_rules_of_security_are_on():
    text = (ROOT / "pyproject.toml").read_text()
    chosen, ignored = (re.search(rf"^{key} = \[(.*?)\]", text, re.M | re.S)[1] for key in ("select", "ignore"))
    assert '"S"' in chosen and not re.search(r'"S\d', ignored)
