"""How a checkpoint becomes native code: trace, passes, kernels, schedules, export, verification."""

from __future__ import annotations

from pathlib import Path

from compiler.optimisations import enabled
from compiler.staging import check_output
from models.source import check_model
from utils.config import BuildConfig


def build(config: BuildConfig) -> Path:
    """Build the artifact that ``config`` describes and return its folder.

    What can be refused by looking at names and headers is refused before torch and tvm are imported.

    Raises:
        UserError: for any mistake in the flags or the checkpoint, and when parity fails. Nothing is saved then.
    """
    enabled(config.disable)
    check_output(config.output_dir)
    check_model(config.model)
    from compiler import builder

    return builder.build(config)
