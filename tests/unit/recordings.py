"""A recording made by hand, in whole seconds: two steps of a UNet between text and decode."""

from dataclasses import dataclass

from runtime.profile import Subject
from runtime.recording import STEPS, Call, Phase, Recording
from runtime.roofline import Peak

PEAK = Peak(flops_per_second=100.0, bytes_per_second=10.0, num_threads=2, how="by hand")
SUBJECT = Subject("ours", "a model", "a CPU", 2, "float32", 64, 64, 7.5)


@dataclass(frozen=True)
class Cost:
    origin: str
    flops: int | None
    bytes: int | None


MULTIPLY, NORM, COPY = Cost("matmul", 300, 10), Cost("layer_norm", 8, 8), Cost("rule", 0, 10)


def call(recording, component, function, start, kernels, end):
    """Add a call with ``kernels`` one after the other: name, cost and seconds, from one second after the start."""
    made, moment = Call(component, function, start, end), start + 1.0
    for name, cost, seconds in kernels:
        recording.add_kernel(component, name, moment, moment + seconds, cost)
        moment += seconds
        if cost is not None:
            made.kernel_seconds += seconds
            made.flops += cost.flops or 0
    recording.calls.append(made)


def recording(side="ours"):
    """Return text 0-10 s, steps 10-30 and 30-50, decode 50-60."""
    made = Recording(side)
    call(made, "text_encoder", "encode", 1.0, [("norm", NORM, 4.0)], 8.0)
    made.phases.append(Phase("text", "text", 0.0, 10.0))
    for index, start in enumerate((10.0, 30.0), 1):
        kernels = [("multiply", MULTIPLY, 6.0), ("vm.builtin.reshape", None, 1.0), ("copy", COPY, 2.0)]
        call(made, "unet", "guided", start + 2, kernels, start + 18)
        made.phases.append(Phase(STEPS, f"step {index}", start, start + 20))
    call(made, "vae_decoder", "decode", 50.0, [("odd", Cost("odd", None, None), 9.0)], 60.0)
    made.phases.append(Phase("decode", "decode", 50.0, 60.0))
    return made
