"""What ``--model`` may name, and what can be refused before torch is imported."""

from __future__ import annotations

from pathlib import Path

from models.architectures import architecture
from models.hub import is_hub_id
from models.layout import inspect_folder, read_header, refuse_pickle

RANDOM = "random:"


def check_model(model: str) -> None:
    """Refuse at once what ``load_checkpoint`` would refuse, as far as folders, configs and file headers tell.

    Raises:
        UserError: nothing there, a pickle, an unknown architecture, a missing component, a file cut short.
    """
    if model.startswith(RANDOM):
        architecture(model.removeprefix(RANDOM), f"--model {model}")
        return
    path = Path(model).expanduser()
    refuse_pickle(path)
    if path.is_file() or path.suffix == ".safetensors" or (not path.exists() and is_hub_id(model)):
        return
    for weights in inspect_folder(path).weights.values():
        read_header(weights)
