"""Components that were built before: in the artifact that is to be replaced, or in the cache.

A component is taken again where its facts are the same (see ``compiler.facts``) and no optimisation that changed it, or
might change it, was turned. The cache holds hard links of the artifacts' files: they take no room of their own until
the artifact is gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from compiler.facts import REST, Facts, facts
from compiler.optimisations import chosen
from compiler.staging import is_running
from runtime.artifact import Artifact, Component, decode
from utils import units
from utils.command_line import flag, parse_command
from utils.config import BuildConfig
from utils.digests import cache_folder, known_digests, remember
from utils.errors import UserError, run_script

ENTRY = "entry.json"


@dataclass(frozen=True)
class Built:
    """A component that was built before: its files lie in ``folder``; ``on`` tells which optimisations were on."""

    folder: Path
    component: Component
    on: dict[str, bool]

    def differences(self, wanted: Facts, on: dict[str, bool]) -> list[str]:
        """Return the names of what would make another component of it."""
        changed = [name for name, value in wanted.items() if self.component.facts.get(name) != value]
        turned = [name for name, state in on.items() if self.on.get(name) != state]
        if any(not self.on.get(name, False) or name in self.component.optimisations for name in turned):
            changed.append("--disable")
        return changed

    def is_whole(self) -> bool:
        """Tell whether the files are there and unaltered."""
        files = {self.folder / file.path: file for file in self.component.files()}
        try:
            found = known_digests(list(files))
        except OSError:
            return False
        return all(found[path] == file.sha256 for path, file in files.items())


@dataclass(frozen=True)
class Plan:
    """What a build finds: the facts of all parts, the components to take again, and why the others are to be built."""

    facts: dict[str, Facts]
    on: dict[str, bool]
    found: dict[str, Built]
    reasons: dict[str, str]
    unchanged: Artifact | None = None  # where nothing at all has to be built


def entries() -> Iterator[tuple[Path, str, Built]]:
    """Yield folder, component's name and content of each entry of the cache that can be read."""
    for path in sorted((cache_folder() / "components").glob(f"[!.]*/{ENTRY}")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, UserError):
            value = json.loads(path.read_text(encoding="utf-8"))
            component = decode(Component, value["component"], str(path))
            on = decode(dict[str, bool], value["on"], str(path))
            yield path.parent, str(value["name"]), Built(path.parent, component, on)


def _earlier(folder: Path) -> Artifact | None:
    """Return the artifact that is to be replaced, if there is one that this version reads."""
    try:
        return Artifact(folder)
    except UserError:
        return None


def make_plan(config: BuildConfig) -> Plan:
    """Find out what has to be built.

    Raises:
        UserError: the checkpoint can't be read.
    """
    wanted, on = facts(config), chosen(config)
    names = [name for name in wanted if name != REST]
    if not config.enable_cache or config.enable_debug:
        why = "--enable-debug shows how" if config.enable_debug else "--enable-cache is 0"
        return Plan(wanted, on, {}, dict.fromkeys(names, why))
    earlier = _earlier(config.output_dir)
    before = (
        {}
        if earlier is None
        else {
            name: Built(earlier.folder, component, earlier.manifest.optimisations)
            for name, component in earlier.manifest.components.items()
        }
    )
    cached = list(entries())
    found, reasons = {}, {}
    for name in names:
        candidates = [before[name]] if name in before else []
        candidates += [built for _, component, built in cached if component == name]
        same = (built for built in candidates if not built.differences(wanted[name], on) and built.is_whole())
        if (built := next(same, None)) is not None:
            found[name] = built
        elif name in before:
            changed = before[name].differences(wanted[name], on)
            reasons[name] = f"{', '.join(changed)} changed" if changed else "its files were altered"
        else:
            reasons[name] = "not built before"
    same_rest = earlier is not None and earlier.manifest.facts == wanted[REST]
    at_hand = all(name in found and found[name].folder == config.output_dir for name in names)
    return Plan(wanted, on, found, reasons, earlier if same_rest and at_hand else None)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; where the file system can't, copy it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        shutil.copy2(source, target)


def place(built: Built, folder: Path) -> Component:
    """Put the files of a component into ``folder``, at the same paths, and return its entry in the manifest."""
    for file in built.component.files():
        _link(built.folder / file.path, folder / file.path)
    return built.component


def share_parameters(component: Component, folder: Path) -> None:
    """Where the cache has a parameter file of the same content, let the one in ``folder`` be that file."""
    own = component.parameters
    for _, _, built in entries():
        other, path = built.component.parameters, built.folder / built.component.parameters.path
        with contextlib.suppress(OSError):
            if (
                (other.sha256, other.size)
                == (own.sha256, own.size)
                == (known_digests([path])[path], path.stat().st_size)
            ):
                shared = folder / f"{own.path}.shared"
                os.link(path, shared)
                shared.replace(folder / own.path)
                return


def store(artifact: Artifact, names: list[str]) -> None:
    """Put components of a finished artifact into the cache, and remember the digests of their files.

    A cache that can't be written is no failure of the build.
    """
    digests: dict[Path, str] = {}
    for name in names:
        component = artifact.manifest.components[name]
        text = json.dumps(
            {"name": name, "component": dataclasses.asdict(component), "on": artifact.manifest.optimisations}
        )
        folder = cache_folder() / "components" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        temporary = folder.with_name(f".{folder.name}-{os.getpid()}")
        digests |= {artifact.path(file): file.sha256 for file in component.files()}
        with contextlib.suppress(OSError):
            try:
                place(Built(artifact.folder, component, {}), temporary)
                (temporary / ENTRY).write_text(text, encoding="utf-8")
                if not folder.exists():
                    temporary.rename(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    remember(digests)


def _room(built: Built) -> tuple[int, bool]:
    """Return the size of an entry's files in bytes, and whether an artifact has them too."""
    states = [path.stat() for path in built.folder.rglob("*") if path.is_file() and path.name != ENTRY]
    return sum(state.st_size for state in states), all(state.st_nlink > 1 for state in states)


COMMANDS = ("list", "prune")
EXAMPLES = """
  python -m compiler.cache list            what is there, how large, and whether an artifact has it too
  python -m compiler.cache prune           remove what no artifact has
  python -m compiler.cache prune --all
"""


@dataclass(frozen=True)
class CacheConfig:
    """What ``python -m compiler.cache`` does with the components that were built before."""

    all: bool = flag(False, "prune what artifacts have too; these keep their files")


def _show() -> None:
    total = 0
    for folder, name, built in entries():
        size, shared = _room(built)
        total += 0 if shared else size
        age = units.seconds(max(0.0, time.time() - (folder / ENTRY).stat().st_mtime))
        where = "in an artifact too" if shared else "only here"
        print(f"{folder.name}  {name:<13} {units.size(size):>8}  built {age} ago, {where}")
    print(f"{units.size(total)} to be freed in {cache_folder()}")


def _remove_leftovers() -> None:
    """Remove what builds left that were killed while they wrote here."""
    for path in (*cache_folder().glob(".*"), *(cache_folder() / "components").glob(".*")):
        if not is_running(path.name.rpartition("-")[2]):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _prune(everything: bool) -> None:
    freed, count = 0, 0
    _remove_leftovers()
    for folder, _, built in entries():
        size, shared = _room(built)
        if everything or not shared:
            shutil.rmtree(folder)
            freed, count = freed + (0 if shared else size), count + 1
    print(f"{count} components removed, {units.size(freed)} freed")


def main(argv: list[str]) -> None:
    """List or prune."""
    command, config = parse_command(CacheConfig, argv, COMMANDS, __doc__ or "", EXAMPLES)
    if command == "list":
        _show()
    else:
        _prune(config.all)


if __name__ == "__main__":
    run_script(main)
