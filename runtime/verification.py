"""Parity of a component with what PyTorch gave where it was built: at the first run on a machine that can run it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping

from runtime.artifact import Artifact
from runtime.engine import Engine
from runtime.parameters import map_parameters
from runtime.quality import FLOOR, finite, psnr
from utils.digests import cache_folder
from utils.errors import UserError
from utils.progress import say

OUTPUT = "output"


def parity(artifact: Artifact, engine: Engine) -> dict[str, float]:
    """Return the PSNR in dB of each function that the component has references of.

    Raises:
        UserError: one is below the floor; component, PSNR and floor are named.
    """
    dtype, description = artifact.manifest.dtype, engine.description
    if description.references is None:
        return {}
    references = map_parameters(artifact.path(description.references))
    found = {}
    for name, function in description.functions.items():
        if f"{name}.{OUTPUT}" not in references:
            continue
        result = engine(name, *(references[f"{name}.{tensor.name}"] for tensor in function.inputs))
        found[name] = psnr(references[f"{name}.{OUTPUT}"], result)
        if not found[name] >= FLOOR[dtype]:
            raise UserError(
                f"{engine.component}.{name}: PSNR {found[name]:.1f} dB against PyTorch is below the floor of "
                f"{FLOOR[dtype]:.0f} dB on this machine; build the artifact on it"
            )
    return found


def verify_once(artifact: Artifact, engines: Mapping[str, Engine], device: str) -> None:
    """Check the parity of each component that was built elsewhere, once for these files and what ``device`` names.

    Raises:
        UserError: see ``parity``.
    """
    for name, engine in engines.items():
        description = engine.description
        if description.references is None or description.psnr:
            continue
        digests = [file.sha256 for file in description.files()]
        key = hashlib.sha256(json.dumps([device, *digests]).encode()).hexdigest()
        known = cache_folder() / "verified" / key
        if known.exists():
            continue
        found = parity(artifact, engine)
        say(
            f"{name}: verified on {device}: "
            + ", ".join(f"{function} {value:.1f} dB" for function, value in found.items())
        )
        with contextlib.suppress(OSError):
            known.parent.mkdir(parents=True, exist_ok=True)
            known.write_text(json.dumps({function: finite(value) for function, value in found.items()}))
