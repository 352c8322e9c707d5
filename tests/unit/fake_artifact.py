"""An artifact without native code, and engines that stand in for it. Run as a script it is inference.py with them."""

import dataclasses
import runpy
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from runtime.artifact import SCHEMA, Component, FunctionType, Kernel, Manifest, TensorType, describe, write_manifest

LENGTH, WIDTH, CHANNELS = 12, 6, 4  # tokens, text features, latent channels
LATENT, SCALE = (3, 5), 4
KERNEL, CALLS = "matmul_0", 3
FLOPS, BYTES = 10**9, 10**7  # of a call of ``KERNEL``, which each function calls CALLS times
START, END = "<|startoftext|>", "<|endoftext|>"


def write_tokenizer(path: Path, length: int | None = LENGTH) -> None:
    """Write a byte-level tokenizer in the manner of CLIP's: one token a byte, cut and padded to ``length``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, *(a + "</w>" for a in alphabet), START, END])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(t, vocabulary[t]) for t in (START, END)]
    )
    if length is not None:
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length, pad_id=vocabulary[END], pad_token=END)
    tokenizer.save(str(path))


def _function(output: TensorType, *inputs: TensorType) -> FunctionType:
    return FunctionType(list(inputs), [output], 1000)


def functions(batch: int) -> dict[str, dict[str, FunctionType]]:
    """Return the functions of each component for a batch of ``batch`` pictures."""
    (h, w), unet = LATENT, {}
    for name, rows in (("guided", 2 * batch), ("unguided", batch)):
        latent = TensorType("latent", [rows, CHANNELS, h, w], "float32")
        timestep = TensorType("timestep", [1], "float32")
        context = TensorType("context", [rows, LENGTH, WIDTH], "float32")
        keys, values = (TensorType(f"output.{i}", [rows, LENGTH, CHANNELS], "float32") for i in range(2))
        unet[f"{name}_context"] = FunctionType([context], [keys, values], 1000)
        output = dataclasses.replace(latent, name="output")
        unet[name] = FunctionType([latent, timestep, context], [output], 1000, f"{name}_context")
    encode = _function(TensorType("context", [1, LENGTH, WIDTH], "float32"), TensorType("ids", [1, LENGTH], "int64"))
    decode = _function(
        TensorType("picture", [1, h * SCALE, w * SCALE, 3], "float32"),
        TensorType("latent", [1, CHANNELS, h, w], "float32"),
    )
    return {"text_encoder": {"encode": encode}, "unet": unet, "vae_decoder": {"decode": decode}}


def write_artifact(folder: Path, batch: int = 1, **changes: object) -> Path:
    """Write an artifact of a batch of ``batch`` pictures; ``changes`` replace fields of its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder / "tokenizer.json")
    components = {}
    for name, types_ in functions(batch).items():
        library, parameters = folder / f"{name}.so", folder / f"{name}.safetensors"
        library.write_bytes(b"native code")
        parameters.write_bytes(b"parameters of " + name.encode())
        files = describe(library, folder), describe(parameters, folder)
        kernels = {KERNEL: Kernel("matmul", FLOPS, BYTES, dict.fromkeys(types_, CALLS))}
        psnr = dict.fromkeys(types_, 99.0)
        components[name] = Component(*files, {}, types_, kernels, psnr, {"rule": 1.0}, 14, 1.5, [], {})
    manifest = Manifest(
        schema=SCHEMA,
        model_name="fake, small: model",
        model_digest="0123456789abcdef" * 4,
        default_prompt=None,
        target={"kind": "llvm"},
        cpu_features=[],
        dtype="float32",
        height=LATENT[0] * SCALE,
        width=LATENT[1] * SCALE,
        batch_size=batch,
        latent_channels=CHANNELS,
        latent_scale=SCALE,
        vae_scaling_factor=0.18215,
        scheduler={
            "_class_name": "EulerDiscreteScheduler",
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "skip_prk_steps": True,
        },
        tokenizer=describe(folder / "tokenizer.json", folder),
        components=components,
        optimisations={},
        token_merging=None,
        versions={},
        facts={},
    )
    write_manifest(dataclasses.replace(manifest, **changes), folder)
    return folder


class FakeEngine:
    """Stands in for a component: checks shapes and dtypes, records the calls, computes row by row.

    The UNet's output depends on the latent, the timestep and the context of its own row only. ``break_at`` is a
    component and a number of its call: from then on it gives NaN, or calls ``on_break`` where that is set.
    """

    calls: list[tuple[str, tuple[np.ndarray, ...]]] = []  # noqa: RUF012  all engines record into one list
    bound: list[tuple[str, dict[str, np.ndarray]]] = []  # noqa: RUF012  the same for what was fixed for many calls
    break_at: tuple[str, int] | None = None
    on_break: Callable[[], object] | None = None

    def __init__(self, artifact, component, device):
        self.component, self.count = component, 0
        self.description = artifact.manifest.components[component]
        self.functions = self.description.functions

    def __call__(self, function, *inputs):
        kind = self.functions[function]
        for tensor, value in zip(kind.inputs, inputs, strict=True):
            assert (list(value.shape), str(value.dtype)) == (tensor.shape, tensor.dtype), (function, tensor.name)
        FakeEngine.calls.append((f"{self.component}.{function}", tuple(value.copy() for value in inputs)))
        output = getattr(self, "_" + self.component)(*inputs).astype(np.float32)
        assert [list(output.shape)] == [tensor.shape for tensor in kind.outputs]
        if self.break_at is not None and self.break_at[0] == self.component and self.count >= self.break_at[1]:
            if FakeEngine.on_break is None:
                output[..., 0] = np.nan
            else:
                FakeEngine.on_break()
        self.count += 1
        return output

    def bind(self, function, **fixed):
        FakeEngine.bound.append((f"{self.component}.{function}", fixed))

        def call(*inputs):
            free = iter(inputs)
            names = [tensor.name for tensor in self.functions[function].inputs]
            return self(function, *[fixed[name] if name in fixed else next(free) for name in names], *free)

        return call

    def release(self):
        """Give back the memory of tensors; there is none here."""

    def instrument(self, observer, around=None):
        """Take an observer of kernels; there are none here."""

    @staticmethod
    def _text_encoder(ids):
        return np.sin(ids[:, :, None] * np.arange(1, WIDTH + 1))

    @staticmethod
    def _unet(latent, timestep, context):
        text = np.tanh(context[:, :CHANNELS].sum(axis=2))[:, :, None, None]
        return 0.3 * latent + text + 1e-4 * timestep

    @staticmethod
    def _vae_decoder(latent):
        picture = 0.5 + 0.5 * np.tanh(latent[:, :3] + latent[:, 3:])
        return picture.repeat(SCALE, axis=2).repeat(SCALE, axis=3).transpose(0, 2, 3, 1)


def calls(prefix: str) -> list[tuple[np.ndarray, ...]]:
    """Return the inputs of all recorded calls of functions (``unet.guided``) that begin with ``prefix``."""
    return [inputs for name, inputs in FakeEngine.calls if name.startswith(prefix)]


def fake_engine_module() -> types.ModuleType:
    """Return what takes the place of runtime.engine, so that no test here needs TVM."""
    module = types.ModuleType("runtime.engine")
    module.Engine = FakeEngine
    module.resolve_device = lambda flag, manifest: flag
    module.set_num_threads = lambda count: count
    return module


if __name__ == "__main__":
    sys.modules["runtime.engine"] = fake_engine_module()
    if sys.argv[-1].startswith("--break-at="):
        component, _, call = sys.argv.pop().removeprefix("--break-at=").partition(":")
        FakeEngine.break_at = (component, int(call))
        FakeEngine.on_break = lambda: signal.raise_signal(signal.SIGINT)
    sys.argv[0] = "inference.py"
    runpy.run_path("inference.py", run_name="__main__")
