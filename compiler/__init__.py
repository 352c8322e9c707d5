"""How a checkpoint becomes native code: trace, passes, kernels, schedules, export, verification."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from compiler.lock import locked
from compiler.optimisations import chosen
from compiler.staging import check_output
from models.source import check_model
from runtime.artifact import write_manifest
from utils import units
from utils.config import BuildConfig


def build(config: BuildConfig) -> Path:
    """Build the artifact that ``config`` describes and return its folder.

    What can be refused by looking at names and headers is refused before torch and tvm are imported, and what was built
    before is found.

    Raises:
        UserError: for any mistake in the flags or the checkpoint, and when parity fails. Nothing is saved then.
    """
    chosen(config)
    check_output(config.output_dir)
    check_model(config.model)
    with locked("--output-dir", config.output_dir, "builds", "leave --no-wait out to wait" if config.no_wait else None):
        if config.tunes:
            from compiler.tuning.model import tune_model

            tune_model(config)
        return _build(config)


def _build(config: BuildConfig) -> Path:
    from compiler.cache import make_plan  # not above: ``python -m compiler.cache`` would import it twice

    start = time.perf_counter()
    plan = make_plan(config)
    if plan.unchanged is not None:
        if plan.unchanged.manifest.optimisations != plan.on:  # others, but none that changes a component
            write_manifest(replace(plan.unchanged.manifest, optimisations=plan.on), config.output_dir)
        print(f"{config.output_dir} is up to date, found in {units.seconds(time.perf_counter() - start)}")
        return config.output_dir
    from compiler import builder

    return builder.build(config, plan)
