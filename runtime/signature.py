"""What the pipeline expects of an artifact's functions: names, shapes and dtypes that fit each other."""

from __future__ import annotations

from runtime.artifact import FunctionType, Manifest, TensorType
from utils.errors import UserError

FUNCTIONS = {"text_encoder": ("encode",), "unet": ("guided", "unguided"), "vae_decoder": ("decode",)}
ON_GPU = {"sampler": ("guided", "guided_input", "unguided")}  # what else runs there: see runtime.device_loop
Types = tuple[list[TensorType], list[TensorType]]  # inputs, outputs


def needed(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """Return the components that the pipeline loads, and their functions."""
    return FUNCTIONS | (ON_GPU if manifest.on_gpu else {})


def check_functions(manifest: Manifest) -> None:
    """Check every function that the pipeline calls.

    Raises:
        UserError: naming the function that is missing or takes or gives something else.
    """
    found: dict[tuple[str, str], FunctionType] = {}
    for component, functions in needed(manifest).items():
        if component not in manifest.components:
            raise UserError(f"the artifact has no {component}; build it again")
        for function in functions:
            if function not in manifest.components[component].functions:
                raise UserError(f"the artifact's {component} has no function {function}; build it again")
            found[component, function] = manifest.components[component].functions[function]
    try:
        wanted = _wanted(found, manifest)
    except (ValueError, IndexError):
        raise UserError("the artifact's functions have shapes that do not fit each other; build it again") from None
    if manifest.on_gpu:
        wanted |= _sampler(found)
    for (component, function), (inputs, outputs) in wanted.items():
        own = found[component, function]
        given = [TensorType("", tensor.shape, tensor.dtype) for tensor in own.outputs]
        if own.inputs != inputs or given != outputs:
            raise UserError(
                f"the artifact's {component} has another {function} than this version calls; build it again"
            )


def _wanted(found: dict[tuple[str, str], FunctionType], manifest: Manifest) -> dict[tuple[str, str], Types]:
    """Return what each function is to take and to give, from the prompt's length and the latent's shape."""
    _, length = found["text_encoder", "encode"].inputs[0].shape
    _, _, features = found["text_encoder", "encode"].outputs[0].shape
    batch, *latent = found["unet", "unguided"].inputs[0].shape
    if min(length, features, batch, *latent) < 1 or len(latent) != 3:
        raise ValueError("an extent below 1")

    def unet(rows: int) -> Types:
        shape = [rows, *latent]
        others = [TensorType("timestep", [1], "float32"), TensorType("context", [rows, length, features], "float32")]
        return [TensorType("latent", shape, "float32"), *others], [TensorType("", shape, "float32")]

    picture = [1, manifest.height, manifest.width, 3]
    return {
        ("text_encoder", "encode"): (
            [TensorType("ids", [1, length], "int64")],
            [TensorType("", [1, length, features], "float32")],
        ),
        ("unet", "guided"): unet(2 * batch),
        ("unet", "unguided"): unet(batch),
        ("vae_decoder", "decode"): (
            [TensorType("latent", [1, *latent], "float32")],
            [TensorType("", picture, "float32")],
        ),
    }


def _sampler(found: dict[tuple[str, str], FunctionType]) -> dict[tuple[str, str], Types]:
    """Return what the sampler's functions are to take and to give, from the UNet's shapes and how many they take."""
    one, two = (found["unet", name].inputs[0].shape for name in ("unguided", "guided"))
    types = {}
    for name, batch, rows in (("guided", two, 1), ("guided_input", two, 2), ("unguided", one, 1)):
        kinds = [tensor.name.rstrip("0123456789") for tensor in found["sampler", name].inputs]
        latents, outputs = kinds.count("latents"), kinds.count("output")
        columns = latents + outputs * batch[0] // one[0]
        inputs = [TensorType("factors", [rows, columns], "float32")]
        inputs += [TensorType(f"latents{i}", one, "float32") for i in range(latents)]
        inputs += [TensorType(f"output{i}", batch, "float32") for i in range(outputs)]
        types["sampler", name] = inputs, [TensorType("", [rows * one[0], *one[1:]], "float32")]
    return types
