"""One component on its own, compiled and loaded as an artifact is: for measurements of single layers, and for tests."""

from __future__ import annotations

from pathlib import Path

import tvm

from compiler.native import compile_component
from compiler.optimisations import enabled
from compiler.package import write_component
from compiler.target import Cpu
from compiler.trace import trace
from models.components import Component
from runtime import artifact
from runtime.engine import Engine


def _manifest(components: dict[str, artifact.Component], tokenizer: artifact.File) -> artifact.Manifest:
    """Return a manifest of which the engine understands the components; the rest says nothing."""
    return artifact.Manifest(
        schema=artifact.SCHEMA,
        model_name="alone",
        model_digest="0" * 64,
        default_prompt=None,
        target={"kind": "llvm"},
        cpu_features=[],
        dtype="float32",
        height=8,
        width=8,
        batch_size=1,
        latent_channels=4,
        latent_scale=8,
        vae_scaling_factor=1.0,
        scheduler={},
        tokenizer=tokenizer,
        components=components,
        optimisations={},
        token_merging=None,
        versions={},
        facts={},
    )


def save(component: Component, folder: Path, cpu: Cpu, disable: str = "") -> artifact.Component:
    """Compile ``component`` into ``folder`` and return its entry in the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    traced = trace(component)
    return write_component(traced, compile_component(traced, cpu, enabled(disable), None), folder, {})


def load(entry: artifact.Component, name: str, folder: Path) -> Engine:
    """Return the engine of a component that ``save`` wrote."""
    (folder / artifact.TOKENIZER).write_text("{}")
    tokenizer = artifact.describe(folder / artifact.TOKENIZER, folder)
    artifact.write_manifest(_manifest({name: entry}, tokenizer), folder)
    return Engine(artifact.Artifact(folder), name, tvm.cpu())
