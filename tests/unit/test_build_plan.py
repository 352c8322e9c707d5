"""What a build finds that was built before, and why the rest is to be built."""

import dataclasses
import json
import os
import shutil

import pytest
from fake_artifact import write_artifact
from machines import XEON, XEON_AMX, cpuinfo, stand_in

from compiler import cache
from compiler import facts as facts_module
from compiler.cache import Built, entries, make_plan, place, share_parameters, store
from compiler.facts import REST, facts
from compiler.optimisations import chosen
from compiler.tuning.kind import kind_here
from runtime.artifact import Artifact, write_manifest
from utils.config import BuildConfig
from utils.cpu import Caches, physical_cores
from utils.features import HIDE

TINY = "random:tiny"
COMPONENTS = ("text_encoder", "unet", "vae_decoder")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TVMERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def config(folder, **flags):
    return BuildConfig(model=TINY, output_dir=folder, **flags)


def built(folder, **flags):
    """Write an artifact as a build with ``flags`` leaves it: layout changed all, cached_context the UNet."""
    asked = config(folder, **flags)
    write_artifact(folder)
    manifest, wanted = Artifact(folder).manifest, facts(asked)
    components = {
        name: dataclasses.replace(
            component,
            facts=wanted[name],
            optimisations=["layout", *(["cached_context"] if name == "unet" else [])],
        )
        for name, component in manifest.components.items()
    }
    on = chosen(asked)
    write_manifest(dataclasses.replace(manifest, components=components, facts=wanted[REST], optimisations=on), folder)
    return Artifact(folder)


def test_nothing_changed(tmp_path):
    built(tmp_path / "a")
    plan = make_plan(config(tmp_path / "a"))
    assert plan.unchanged is not None and set(plan.found) == set(COMPONENTS) and plan.reasons == {}


def test_a_gpu_of_another_architecture_takes_all_anew_and_has_a_sampler(tmp_path):
    first, second = (config(tmp_path / "a", target="cuda", cuda_arch=arch) for arch in ("sm_80", "sm_90"))
    on_cpu, wanted, other = facts(config(tmp_path / "a")), facts(first), facts(second)
    assert set(wanted) == {*on_cpu, "sampler"}
    for name in (*COMPONENTS, "sampler"):
        assert wanted[name] != other[name] and wanted[name]["--target"] == "sm_80"
        assert wanted[name]["--dtype"] == "float16"
    same = config(tmp_path / "a", cuda_arch="sm_80", target='{"kind": "cuda"}')
    assert facts(same) == wanted


@pytest.mark.parametrize(
    ("flags", "rebuilt", "reason"),
    [
        ({"height": 72}, ("unet", "vae_decoder"), "--height changed"),
        ({"width": 72, "height": 72}, ("unet", "vae_decoder"), "--height, --width changed"),
        ({"batch_size": 2}, COMPONENTS, "--batch-size changed"),
        ({"winograd_tile": 4}, ("unet", "vae_decoder"), "--winograd-tile changed"),
        ({"disable": "cached_context"}, ("unet",), "--disable changed"),
        ({"disable": "layout"}, COMPONENTS, "--disable changed"),
        ({"disable": "winograd"}, (), ""),
        ({"target": '{"kind": "llvm", "mcpu": "haswell"}'}, COMPONENTS, "--target changed"),
        ({"cpu": "x86-64-v3"}, COMPONENTS, "--cpu changed"),
        ({"cpu": "native"}, (), ""),
    ],
)
def test_a_flag_rebuilds_what_it_touches(tmp_path, flags, rebuilt, reason):
    built(tmp_path / "a")
    plan = make_plan(config(tmp_path / "a", **flags))
    assert plan.reasons == dict.fromkeys(rebuilt, reason)
    assert set(plan.found) == set(COMPONENTS) - set(rebuilt)
    assert (plan.unchanged is not None) == (not rebuilt)


def machine(tmp_path, monkeypatch, flags, name="Some CPU"):
    stand_in(monkeypatch, tmp_path, cpuinfo(flags, name))


def test_another_machine_of_the_same_name_takes_all_anew(tmp_path, monkeypatch):
    """A cache that travels in a home directory; features that the user hides; a CPU's name alone changes nothing."""
    machine(tmp_path, monkeypatch, XEON_AMX, "Intel Xeon")
    built(tmp_path / "a")
    machine(tmp_path, monkeypatch, XEON_AMX, "Intel Xeon, renamed")
    assert make_plan(config(tmp_path / "a")).unchanged is not None
    machine(tmp_path, monkeypatch, XEON, "Intel Xeon")
    assert make_plan(config(tmp_path / "a")).reasons == dict.fromkeys(COMPONENTS, "--cpu changed")
    machine(tmp_path, monkeypatch, XEON_AMX, "Intel Xeon")
    monkeypatch.setenv(HIDE, "avx512_bf16")
    assert make_plan(config(tmp_path / "a")).reasons == dict.fromkeys(COMPONENTS, "--cpu changed")
    monkeypatch.delenv(HIDE)
    monkeypatch.setattr(facts_module, "cache_sizes", lambda: Caches(l2=3 << 20))
    assert make_plan(config(tmp_path / "a")).reasons == dict.fromkeys(COMPONENTS, "--cpu changed")


def test_records_of_this_kind_of_machine_count(tmp_path, monkeypatch):
    """Those of others may come and go."""
    here = kind_here((), physical_cores())
    asked = config(tmp_path / "a", database_dir=tmp_path / "db")
    before = facts(asked)
    for name, kind in (("theirs", dataclasses.replace(here, l2=1)), ("damaged", None), ("ours", here)):
        (tmp_path / "db" / name).mkdir(parents=True)
        info = "{" if kind is None else json.dumps({"kind": dataclasses.asdict(kind)})
        (tmp_path / "db" / name / "info.json").write_text(info)
        (tmp_path / "db" / name / "database_tuning_record.json").write_text("a record")
        assert (facts(asked) == before) == (name != "ours")


def test_an_optimisation_that_was_off_might_change_anything(tmp_path):
    built(tmp_path / "a", disable="winograd")
    assert make_plan(config(tmp_path / "a")).reasons == dict.fromkeys(COMPONENTS, "--disable changed")


@pytest.mark.parametrize("name", ["sources of compiler/ and models/", "library versions", "--target", "--model"])
def test_sources_versions_and_checkpoints(tmp_path, monkeypatch, name):
    built(tmp_path / "a")
    changed = {part: values | {name: "other"} for part, values in facts(config(tmp_path / "a")).items()}
    monkeypatch.setattr(cache, "facts", lambda config: changed)
    assert make_plan(config(tmp_path / "a")).reasons == dict.fromkeys(COMPONENTS, f"{name} changed")


def test_off_switches(tmp_path):
    built(tmp_path / "a")
    for flags, why in (({"enable_cache": 0}, "--enable-cache is 0"), ({"enable_debug": True}, "--enable-debug")):
        plan = make_plan(config(tmp_path / "a", **flags))
        assert plan.found == {} and plan.unchanged is None
        assert all(reason.startswith(why) for reason in plan.reasons.values()) and len(plan.reasons) == 3


@pytest.mark.parametrize("change", [lambda p: p.write_bytes(b"natlve code"), lambda p: p.write_bytes(b"nat")])
def test_altered_files_are_not_taken(tmp_path, change):
    artifact = built(tmp_path / "a")
    change(artifact.folder / "unet.so")
    plan = make_plan(config(tmp_path / "a"))
    assert "unet" in plan.reasons and plan.unchanged is None


def test_another_artifact_takes_components_from_the_cache(tmp_path):
    store(built(tmp_path / "a"), list(COMPONENTS))
    shutil.rmtree(tmp_path / "a")
    plan = make_plan(config(tmp_path / "b"))
    assert set(plan.found) == set(COMPONENTS) and plan.unchanged is None and plan.reasons == {}
    assert make_plan(config(tmp_path / "b", height=72)).reasons == dict.fromkeys(
        ("unet", "vae_decoder"), "not built before"
    )
    component = place(plan.found["unet"], tmp_path / "b")
    assert (tmp_path / "b" / component.library.path).read_bytes() == b"native code"


def test_damaged_entries_are_passed_over(tmp_path):
    store(built(tmp_path / "a"), list(COMPONENTS))
    found = {name: folder for folder, name, _ in entries()}
    assert set(found) == set(COMPONENTS)
    (found["unet"] / "entry.json").write_text('{"name": "unet"')
    (found["text_encoder"] / "entry.json").write_text('{"name": "text_encoder", "component": {}, "on": {}}')
    assert {name for _, name, _ in entries()} == {"vae_decoder"}
    (found["vae_decoder"] / "vae_decoder.so").unlink()
    shutil.rmtree(tmp_path / "a")
    assert set(make_plan(config(tmp_path / "a")).reasons) == set(COMPONENTS)


def test_where_links_are_impossible_files_are_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    artifact = built(tmp_path / "a")
    monkeypatch.setattr(cache.os, "link", refuse)
    place(Built(artifact.folder, artifact.manifest.components["unet"], {}), tmp_path / "b")
    assert (tmp_path / "b" / "unet.so").read_bytes() == b"native code"
    assert (tmp_path / "b" / "unet.so").stat().st_nlink == 1


def test_equal_parameters_are_one_file(tmp_path):
    store(built(tmp_path / "a"), list(COMPONENTS))
    other = built(tmp_path / "b")
    for name, component in other.manifest.components.items():
        share_parameters(component, other.folder)
        one, two = (tmp_path / folder / f"{name}.safetensors" for folder in "ab")
        assert one.samefile(two)
    Artifact(tmp_path / "b", verify=True)
    (tmp_path / "a" / "unet.safetensors").write_bytes(b"altered")  # and so the cache's
    third = built(tmp_path / "c")
    share_parameters(third.manifest.components["unet"], third.folder)
    Artifact(tmp_path / "c", verify=True)


def test_list_and_prune(tmp_path, capsys):
    store(built(tmp_path / "a"), list(COMPONENTS))
    cache.main(["list"])
    said = capsys.readouterr().out
    assert said.count("in an artifact too") == 3 and "0 B to be freed" in said
    cache.main(["prune"])
    assert "0 components removed" in capsys.readouterr().out and len(list(entries())) == 3
    shutil.rmtree(tmp_path / "a")
    cache.main(["list"])
    assert capsys.readouterr().out.count("only here") == 3
    cache.main(["prune"])
    assert "3 components removed" in capsys.readouterr().out and list(entries()) == []


def test_prune_removes_what_killed_builds_left(tmp_path, own_cache):
    kept = [own_cache / f".digests-{os.getpid()}"]
    gone = [own_cache / ".digests-999999999", own_cache / "components" / ".unet-0123-999999999" / "unet.so"]
    for path in kept + gone:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half of it")
    assert list(entries()) == []
    cache.main(["prune"])
    assert all(path.exists() for path in kept) and not any(path.exists() for path in gone)
    kept[0].unlink()


def test_prune_all_leaves_artifacts_alone(tmp_path, capsys):
    artifact = built(tmp_path / "a")
    store(artifact, list(COMPONENTS))
    cache.main(["prune", "--all"])
    assert "3 components removed, 0 B freed" in capsys.readouterr().out
    assert Artifact(tmp_path / "a", verify=True).manifest == artifact.manifest
