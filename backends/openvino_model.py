"""A model of OpenVINO's, compiled for this CPU, and the file that one is kept in."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np

IR = "model.xml"
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


def import_openvino() -> ModuleType:
    """Import OpenVINO without its telemetry, which would report each import to its makers."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


class OpenVinoModel:
    """The IR in ``folder``, compiled to compute in ``dtype`` on ``num_threads`` threads with the hint for latency.

    Without CACHE_DIR, which would keep what was compiled: 2026.4.1 returns NaN from a bfloat16 model that it had kept.
    """

    def __init__(self, folder: Path, dtype: str, num_threads: int) -> None:
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
            "INFERENCE_NUM_THREADS": num_threads,
        }
        core = import_openvino().Core()
        self._request = core.compile_model(str(folder / IR), "CPU", settings).create_infer_request()

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        """Run the model. The result is overwritten by the next call."""
        return self._request.infer(list(inputs), share_inputs=True, share_outputs=True)[0]
