"""From a prompt to pictures: encode, denoise, decode, with the compiled components of one artifact."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

import schedulers
from runtime.artifact import TOKENIZER, Artifact, Manifest
from runtime.signature import check_functions, needed
from runtime.tokenizer import Tokenizer
from schedulers import Noise, NoiseGenerator, Scheduler, per_picture
from schedulers.moves import moves
from utils import units
from utils.cpu import cpu_name
from utils.errors import UserError
from utils.memory import available_memory

if TYPE_CHECKING:
    from runtime.device_loop import Done

KEPT_PROMPTS = 16
UNet = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of latents and timestep; it has the prompts already


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to draw and how. ``guidance_scale`` of 1 or less is no guidance; no label means the model's own sampler."""

    prompt: str
    negative_prompt: str = ""
    steps: int = 20
    guidance_scale: float = 7.5
    scheduler_label: str | None = None

    @property
    def guided(self) -> bool:
        """Whether the UNet is called for both prompts (classifier-free guidance, arXiv:2207.12598)."""
        return self.guidance_scale > 1

    def scheduler(self, manifest: Manifest) -> Scheduler:
        """Return a new sampler, its timesteps planned.

        Raises:
            UserError: unknown label, or more steps than the sampler can make.
        """
        label = self.scheduler_label
        if label is None:
            label = schedulers.default_label(manifest.scheduler)
        scheduler = schedulers.create(label, manifest.scheduler)
        scheduler.set_timesteps(self.steps)
        return scheduler


@dataclass(frozen=True)
class Step:
    """One step done. Arrays are float32 [pictures, C, h, w] and must not be written to.

    ``index`` counts from 0 to ``count`` - 1; ``timestep`` and ``sigma`` are where the UNet was called, ``eps`` is its
    output after guidance (epsilon or v, as the model was trained), ``x_t`` the latents after the step. It began at
    ``start``, by ``time.perf_counter``, and took ``seconds``.
    """

    index: int
    count: int
    timestep: float
    sigma: float
    read_x_t: Callable[[], np.ndarray]
    read_eps: Callable[[], np.ndarray]
    start: float
    seconds: float

    @property
    def x_t(self) -> np.ndarray:
        """The latents after the step."""
        return self.read_x_t()

    @property
    def eps(self) -> np.ndarray:
        """The UNet's output after guidance."""
        return self.read_eps()


class NotFinite(UserError):
    """NaN or Inf where there should be numbers."""


class Pipeline:
    """The components of an artifact, loaded. Nothing about a picture is fixed here but its size and the batch.

    Raises:
        UserError: the artifact lacks a component or function, or can't run on the device.
    """

    def __init__(self, artifact: Artifact, device: str = "auto", num_threads: int | None = None) -> None:
        from runtime import engine  # brings in TVM, which takes a second: not before it is needed

        self.manifest = artifact.manifest
        check_functions(self.manifest)
        if not self.manifest.on_gpu:
            _require_memory(self.manifest, available_memory())
        self.tokenizer = Tokenizer(artifact.path(self.manifest.tokenizer))
        (_, length) = self.manifest.components["text_encoder"].functions["encode"].inputs[0].shape
        if self.tokenizer.length != length:
            raise UserError(
                f"{TOKENIZER} makes {self.tokenizer.length} tokens, the text encoder takes {length}; "
                "build the artifact again"
            )
        target = engine.resolve_device(device, self.manifest)
        if self.manifest.on_gpu:
            _require_memory(self.manifest, target.available_global_memory)
        self.num_threads = engine.set_num_threads(num_threads)
        self.engines = {name: engine.Engine(artifact, name, target) for name in needed(self.manifest)}
        from runtime.verification import verify_once

        verify_once(artifact, self.engines, target.device_name if self.manifest.on_gpu else cpu_name())
        self.batch_size, *latent_shape = self.manifest.components["unet"].functions["unguided"].inputs[0].shape
        self.latent_shape = tuple(latent_shape)
        self.encode = functools.lru_cache(KEPT_PROMPTS)(self._encode)

    def _encode(self, prompt: str) -> np.ndarray:
        context = self.engines["text_encoder"]("encode", self.tokenizer.encode(prompt))
        _require_finite(context, "text_encoder", "")
        context.setflags(write=False)  # it is kept for the next picture
        return context

    def context(self, request: Request) -> np.ndarray:
        """Return what the UNet reads of the prompts, [B or 2B, 77, C]: the negative prompt first, as in diffusers.

        A prompt that was encoded before is not encoded again.
        """
        prompts = [request.negative_prompt, request.prompt] if request.guided else [request.prompt]
        return np.concatenate([np.repeat(self.encode(prompt), self.batch_size, axis=0) for prompt in prompts])

    def sample(self, request: Request, seeds: Sequence[int]) -> Iterator[Step]:
        """Denoise one picture for each seed, at most ``batch_size`` of them, and yield after each step.

        Each picture has its own noise generator, so it is the same in any batch. To cancel, close the iterator.

        Raises:
            UserError: unknown sampler; NaN or Inf in the latents, after the step that shows them was yielded.
            ValueError: no seeds, or more than ``batch_size``.
        """
        if not 1 <= len(seeds) <= self.batch_size:
            raise ValueError(f"{len(seeds)} seeds for a batch size of {self.batch_size}")
        scheduler = request.scheduler(self.manifest)
        noise = per_picture([NoiseGenerator(seed) for seed in seeds])
        x_t = noise((len(seeds), *self.latent_shape)) * np.float32(scheduler.init_noise_sigma)
        if self.manifest.on_gpu and scheduler.is_linear:
            return self._denoise_on_device(request, scheduler, x_t, noise)
        unet = self.engines["unet"].bind("guided" if request.guided else "unguided", context=self.context(request))
        return self._denoise(request, scheduler, unet, x_t, noise)

    def _denoise(
        self, request: Request, scheduler: Scheduler, unet: UNet, x_t: np.ndarray, noise: Noise
    ) -> Iterator[Step]:
        count = len(scheduler.timesteps)
        for i, t in enumerate(scheduler.timesteps):
            start = time.perf_counter()
            eps = self._predict(request, scheduler.scale_model_input(x_t, i), t, unet)
            x_t = scheduler.step(eps, i, x_t, noise)
            seconds = time.perf_counter() - start
            read = functools.partial(np.asarray, x_t), functools.partial(np.asarray, eps)
            yield Step(i, count, float(t), float(scheduler.sigmas[i]), *read, start, seconds)
            where = f" at step {i + 1} of {count} (timestep {t:g})"
            _require_finite(eps, "unet", where)
            _require_finite(x_t, "scheduler", where)

    def _denoise_on_device(
        self, request: Request, scheduler: Scheduler, x_t: np.ndarray, noise: Noise
    ) -> Iterator[Step]:
        """Denoise without a word from the host between two steps, and wait for the last; NaN and Inf are found then."""
        from runtime.device_loop import DeviceLoop

        pictures, count, scale = len(x_t), len(scheduler.timesteps), np.float32(request.guidance_scale)

        def whole(x: np.ndarray) -> np.ndarray:
            return np.concatenate([x, np.repeat(x[:1], self.batch_size - pictures, axis=0)])

        def read_x(done: Done) -> np.ndarray:
            return done.x.numpy()[:pictures]

        def read_eps(done: Done) -> np.ndarray:
            output = done.output.numpy()
            if not request.guided:
                return output[:pictures]
            eps_uncond, eps_cond = np.split(output, 2)
            return (eps_uncond + scale * (eps_cond - eps_uncond))[:pictures]

        loop = DeviceLoop(self.engines["unet"], self.engines["sampler"], request.guided, self.context(request))
        x_t = whole(x_t)
        planned = moves(scheduler, request.guidance_scale if request.guided else None, x_t.shape)
        for done in loop.run(scheduler, planned, x_t, lambda shape: whole(noise((pictures, *shape[1:])))):
            i = done.index
            if i == count - 1:
                read_x(done)  # the seconds of the last step are those of all that was launched and not done yet
            seconds = time.perf_counter() - done.start
            read = functools.partial(read_x, done), functools.partial(read_eps, done)
            step = Step(i, count, float(scheduler.timesteps[i]), float(scheduler.sigmas[i]), *read, done.start, seconds)
            yield step
        _require_finite(step.x_t, "unet", " in a step; --enable-debug shows which")

    def _predict(self, request: Request, x: np.ndarray, t: float, unet: UNet) -> np.ndarray:
        """Call the UNet once and return its output for each picture, float32, after guidance."""
        count = len(x)
        if count < self.batch_size:  # the function's batch is fixed: repeat a picture and drop what comes of it
            x = np.concatenate([x, np.repeat(x[:1], self.batch_size - count, axis=0)])
        timestep = np.array([t], np.float32)
        if not request.guided:
            return unet(x, timestep)[:count]
        eps_uncond, eps_cond = np.split(unet(np.concatenate([x, x]), timestep), 2)
        return (eps_uncond + np.float32(request.guidance_scale) * (eps_cond - eps_uncond))[:count]

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Return the pictures of latents float32 [n, C, h, w]: float32 [n, H, W, 3] in [0, 1].

        The tensors of the UNet and those of the decoder, which are the larger ones, are not in memory at once.

        Raises:
            UserError: the decoder's output has NaN or Inf.
        """
        decoder = self.engines["vae_decoder"]
        decoder.release()
        pictures = np.concatenate([decoder("decode", x[None]) for x in latents])
        decoder.release()
        _require_finite(pictures, "vae_decoder", "")
        return pictures


def _require_memory(manifest: Manifest, available: int | None) -> None:
    """Refuse an artifact that the machine, or its GPU, would run out of memory with; ``available`` are bytes."""
    components = manifest.components.values()
    parameters = sum(component.parameters.size for component in components)
    tensors = sum(max((f.workspace for f in component.functions.values()), default=0) for component in components)
    if available is not None and parameters + tensors > available:
        raise UserError(
            f"the artifact takes {units.size(parameters)} of memory for parameters, {units.size(tensors)} for tensors, "
            f"and {units.size(available)} are free; free some, or build it with less --height, --width or --batch-size"
        )


def _require_finite(x: np.ndarray, component: str, where: str) -> None:
    bad = x.size - np.count_nonzero(np.isfinite(x))
    if bad:
        raise NotFinite(
            f"{component}: {bad} of {x.size} values are NaN or Inf{where}; try another --scheduler-label, "
            "or build the artifact again"
        )
