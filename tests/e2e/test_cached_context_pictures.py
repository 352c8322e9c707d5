"""Latents and pictures do not depend on whether keys and values of the prompts are computed once a picture."""

import numpy as np
import pytest

from runtime.artifact import Artifact
from runtime.pipeline import Pipeline, Request
from runtime.profiler import Profiler
from runtime.quality import psnr

REQUESTS = [
    Request(prompt="a red circle", steps=3),
    Request(prompt="a blue square", negative_prompt="green, a tree", steps=3),
    Request(prompt="a blue square", steps=3, guidance_scale=1),
    Request(prompt="a cat on grass", negative_prompt="red", steps=3, guidance_scale=2.5, scheduler_label="ddim"),
    Request(prompt="a red circle", steps=3),
]
KEYS_AND_VALUES = 14  # of the seven cross-attentions of random:tiny


@pytest.fixture(scope="module")
def cached(tiny_artifact):
    return Pipeline(Artifact(tiny_artifact))


@pytest.fixture(scope="module")
def plain(good_script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "artifact"
    good_script("build.py", "--model", "random:tiny", "--disable", "cached_context", "--output-dir", folder)
    return Pipeline(Artifact(folder))


def draw(pipeline, request, seed=3):
    *_, step = pipeline.sample(request, [seed])
    return step.x_t


def test_the_manifests_tell_them_apart(cached, plain):
    for pipeline, on in ((cached, True), (plain, False)):
        assert pipeline.manifest.optimisations["cached_context"] is on
        functions = pipeline.manifest.components["unet"].functions
        assert {f"{name}_context" in functions for name in ("guided", "unguided")} == {on}


def test_pictures_in_a_row_are_the_plain_builds(cached, plain):
    ours, theirs = ([draw(pipeline, request) for request in REQUESTS] for pipeline in (cached, plain))
    for mine, other in zip(ours, theirs, strict=True):
        assert psnr(other, mine) >= 100
    assert np.array_equal(ours[0], ours[-1])
    assert all(psnr(ours[0], other) < 60 for other in ours[1:-1])
    assert psnr(plain.decode(theirs[1]), cached.decode(ours[1])) >= 100


def test_two_pictures_at_once_keep_their_own_prompts(cached):
    first, second = REQUESTS[:2]
    alone = [draw(cached, request) for request in (first, second)]
    *_, both = zip(cached.sample(first, [3]), cached.sample(second, [3]), strict=True)
    assert all(np.array_equal(step.x_t, expected) for step, expected in zip(both, alone, strict=True))


@pytest.mark.parametrize("guidance", [7.5, 1])
def test_keys_and_values_are_computed_once_a_picture(cached, plain, guidance):
    """Of the kernels that the profiler counts, some run once a picture and the others once a step."""

    def kernels(pipeline, steps, pictures=1):
        request = Request(prompt="a", steps=steps, guidance_scale=guidance, scheduler_label="ddim")
        with Profiler(pipeline.engines) as profiler:
            for seed in range(pictures):
                draw(pipeline, request, seed)
        entries = profiler.entries.items()
        return sum(e.calls for (component, name), e in entries if component == "unet" and not name.startswith("vm."))

    a_step, a_picture = {}, {}
    for name, pipeline in (("cached", cached), ("plain", plain)):
        a_step[name] = kernels(pipeline, 3) - kernels(pipeline, 2)
        a_picture[name] = kernels(pipeline, 2) - 2 * a_step[name]
        assert kernels(pipeline, 2, pictures=3) == 3 * kernels(pipeline, 2)
    assert a_picture == {"cached": KEYS_AND_VALUES, "plain": 0}
    assert a_step["plain"] - a_step["cached"] == KEYS_AND_VALUES
