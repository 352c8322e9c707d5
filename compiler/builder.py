"""build.py's one call: checkpoint -> components -> native code -> verified artifact."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from compiler.cache import Plan, place, share_parameters, store
from compiler.destination import Destination, destination
from compiler.facts import REST, versions
from compiler.native import Native
from compiler.package import write_component
from compiler.staging import staged
from compiler.trace import trace
from models.checkpoint import Checkpoint, load_checkpoint
from models.components import Component, components
from models.sampler import sampler
from runtime import artifact
from runtime.engine import set_num_threads
from utils import units
from utils.config import BuildConfig
from utils.files import folder_size


def _manifest(
    config: BuildConfig,
    plan: Plan,
    checkpoint: Checkpoint,
    where: Destination,
    size: tuple[int, int],
    tokenizer: artifact.File,
) -> Callable[[dict[str, artifact.Component]], artifact.Manifest]:
    """Return a function that makes the manifest from what only the build's end knows."""

    def make(built: dict[str, artifact.Component]) -> artifact.Manifest:
        return artifact.Manifest(
            schema=artifact.SCHEMA,
            model_name=checkpoint.name,
            model_digest=checkpoint.digest,
            default_prompt=checkpoint.default_prompt,
            target=where.target,
            cpu_features=where.features,
            dtype=config.precision,
            height=size[0],
            width=size[1],
            batch_size=config.batch_size,
            latent_channels=checkpoint.latent_channels,
            latent_scale=checkpoint.latent_scale,
            vae_scaling_factor=checkpoint.vae_scaling_factor,
            scheduler=checkpoint.scheduler_config,
            tokenizer=tokenizer,
            components=built,
            optimisations=plan.on,
            token_merging=None if config.merging is None else dataclasses.asdict(config.merging),
            versions=versions(),
            facts=plan.facts[REST],
        )

    return make


def _compile(
    component: Component, where: Destination, config: BuildConfig, plan: Plan, folder: Path
) -> tuple[artifact.Component, Native]:
    print(f"{component.name}: to be built, {plan.reasons[component.name]}", flush=True)
    times = [time.perf_counter()]
    traced = trace(component)
    times.append(time.perf_counter())
    debug_dir = folder / "debug" / component.name if config.enable_debug else None
    native = where.compile(component, traced, plan.on, debug_dir)
    times.append(time.perf_counter())
    entry = write_component(traced, native, folder, plan.facts[component.name])
    times.append(time.perf_counter())
    tracing, _, writing = (units.seconds(after - before) for before, after in itertools.pairwise(times))
    parameters = (
        f" and {units.size(entry.parameters.size)} of parameters ({entry.parameters.size / entry.raw_bytes:.2f} x raw)"
        if entry.raw_bytes
        else ""
    )
    print(
        f"{component.name}: traced in {tracing}, {len(native.origins)} kernels compiled in "
        f"{units.seconds(native.seconds)}, library{parameters} written in {writing}",
        flush=True,
    )
    return replace(entry, build_seconds=times[-1] - times[0]), native


def _take(name: str, plan: Plan, config: BuildConfig, folder: Path) -> artifact.Component:
    """Take a component that was built before."""
    built = plan.found[name]
    where = config.output_dir if built.folder == config.output_dir else "the cache"
    print(f"{name}: unchanged, taken from {where}", flush=True)
    return place(built, folder)


def build(config: BuildConfig, plan: Plan) -> Path:
    """Build what ``plan`` lacks of the artifact that ``config`` describes and return its folder.

    Raises:
        UserError: for any mistake in the flags or the checkpoint, and when parity fails. Nothing is saved then.
    """
    start = time.perf_counter()
    where = destination(config)
    torch.set_num_threads(set_num_threads(config.num_threads))
    checkpoint = load_checkpoint(config.model)
    size = checkpoint.size(config.height, config.width)
    print(f"{checkpoint.name}: {size[1]}x{size[0]} pixels, for {where.label}", flush=True)
    parts = components(checkpoint, *size, config.batch_size, config.merging)
    if config.gpu is not None:
        parts.append(sampler(checkpoint, *size, config.batch_size))
    with staged(config.output_dir) as folder:
        (folder / artifact.TOKENIZER).write_text(checkpoint.tokenizer_json, encoding="utf-8")
        make = _manifest(config, plan, checkpoint, where, size, artifact.describe(folder / artifact.TOKENIZER, folder))
        built, natives = {}, {}
        for part in parts:
            if part.name in plan.found:
                built[part.name] = _take(part.name, plan, config, folder)
            else:
                built[part.name], natives[part.name] = _compile(part, where, config, plan, folder)
                if config.enable_cache:
                    share_parameters(built[part.name], folder)
        artifact.write_manifest(make(built), folder)
        unverified = artifact.Artifact(folder)
        for part in (part for part in parts if part.name in natives):
            built[part.name] = where.verified(part, built[part.name], natives[part.name], unverified)
        artifact.write_manifest(make(built), folder)
    if config.enable_cache:
        store(artifact.Artifact(config.output_dir), list(natives))
    total = folder_size(config.output_dir)
    print(f"saved {config.output_dir} ({units.size(total)}) in {units.seconds(time.perf_counter() - start)}")
    return config.output_dir
