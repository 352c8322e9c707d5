"""The demo's training on networks of a few thousand weights."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from demo.architecture import Architecture
from demo.autoencoder import encode, reconstruct, train_autoencoder
from demo.checkpoint import load
from demo.config import TrainConfig
from demo.dataset import make_scene, vocabulary
from demo.diffusion import PAIRS, Captioned, choose_batch, ddim, denoising_loss, draw_batch, tokenise, train_diffusion
from demo.pictures import MIX, held_out, psnr, scenes, to_pixels, to_tensor
from demo.stages import train
from demo.tokenizer import write_tokenizer
from demo.training import Budget, Schedule, State
from demo.workers import workers
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TINY = Architecture(
    size=32,
    latent_channels=4,
    vae=(8, 8, 8, 8),
    vae_groups=4,
    unet=(16, 32),
    heads=(1, 2),
    unet_groups=8,
    text_width=16,
    text_layers=1,
    text_heads=2,
)


class Killed(Exception):
    """Stands for a kill: training stops at once."""


@pytest.fixture(scope="module")
def pixels(tmp_path_factory) -> np.ndarray:
    return scenes(tmp_path_factory.mktemp("scenes") / "scenes.npy", 24, 32, 0)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(vocabulary(), folder)
    return folder


def diffusion_parts(tokenizer_folder):
    from transformers import CLIPTokenizer

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    return TINY.autoencoder(), TINY.text_encoder(len(tokenizer)), TINY.denoiser(), tokenizer


def captioned(tokenizer, count: int = 24) -> Captioned:
    drawn = [make_scene(i, 0, **MIX) for i in range(count)]
    latents = torch.randn(count, 4, 4, 4, generator=torch.Generator().manual_seed(1)).half()
    ids = tokenise(tokenizer, [scene.caption for scene in drawn]).short()
    return Captioned(latents, ids, np.array([len(scene.things) == 2 for scene in drawn]))


def kill_at(call: int):
    calls = []

    def keep() -> None:
        calls.append(0)
        if len(calls) == call:
            raise Killed

    return keep


def test_diffusion_killed_and_resumed_gives_the_same_losses(tmp_path, tokenizer_folder):
    def run(work: Path, resume: bool, keep) -> State:
        parts = diffusion_parts(tokenizer_folder)
        data = captioned(parts[3])
        work.mkdir(exist_ok=True)
        budget = Budget(1, steps=6)
        return train_diffusion(parts, data, work, budget, batch=4, resume=resume, every_minutes=0, keep=keep)

    through = run(tmp_path / "a", False, lambda: None)
    with pytest.raises(Killed):
        run(tmp_path / "b", False, kill_at(3))
    resumed = run(tmp_path / "b", True, lambda: None)
    assert resumed.step == 6 and len(set(through.losses)) == 6
    assert resumed.losses == pytest.approx(through.losses, rel=1e-5)
    for name, value in through.parameters.items():
        assert torch.allclose(value, resumed.parameters[name], atol=1e-5), name
    written = {path.name for path in (tmp_path / "b").iterdir()}
    assert written >= {"samples.png", "diffusion_loss.png", "diffusion.safetensors"}


def test_autoencoder_killed_and_resumed_gives_the_same_losses(tmp_path, pixels, monkeypatch):
    def run(work: Path, resume: bool) -> State:
        torch.manual_seed(0)
        work.mkdir(exist_ok=True)
        budget = Budget(1, steps=5)
        return train_autoencoder(
            TINY.autoencoder(), pixels, pixels[:4], work, budget, batch=4, resume=resume, every_minutes=0
        )

    through = run(tmp_path / "a", False)
    with monkeypatch.context() as patch:
        patch.setattr("demo.autoencoder.grid", lambda *_: kill())
        kill = kill_at(2)
        with pytest.raises(Killed):
            run(tmp_path / "b", False)
    assert run(tmp_path / "b", True).losses == pytest.approx(through.losses, rel=1e-5)


def test_training_lowers_the_loss(tmp_path, pixels):
    torch.manual_seed(0)
    vae = TINY.autoencoder()
    before = psnr(pixels[:8], reconstruct(vae, pixels[:8]))
    state = train_autoencoder(vae, pixels, pixels[:8], tmp_path, Budget(1, steps=120), batch=4, rate=2e-2)
    assert np.mean(state.losses[-10:]) < 0.6 * np.mean(state.losses[:10])
    assert psnr(pixels[:8], reconstruct(vae, pixels[:8])) > before + 2


def test_processes_find_the_gradients_of_the_whole_batch(tokenizer_folder):
    parts = diffusion_parts(tokenizer_folder)
    modules = {"unet": parts[2], "text_encoder": parts[1]}
    data = captioned(parts[3], 5)
    batch = (data.latents.float(), data.ids.long(), torch.randn(5, 4, 4, 4), torch.randint(0, 1000, (5,)))
    found = []
    for count in (1, 3):
        with workers(modules, count, partial(denoising_loss, ddim())) as team:
            loss = team.backward(batch)
        found.append((loss, [p.grad.clone() for m in modules.values() for p in m.parameters() if p.grad is not None]))
        for module in modules.values():
            module.zero_grad()
    (loss, gradients), (shared_loss, shared) = found
    assert max(g.abs().max() for g in gradients) > 1e-3
    assert shared_loss == pytest.approx(loss, rel=0.02)
    error = sum(((a - b) ** 2).sum() for a, b in zip(shared, gradients, strict=True))
    assert error < 0.01 * sum((g**2).sum() for g in gradients)  # bfloat16 rounds differently for each shape


def squared(modules, x):
    return (modules["linear"](x) ** 2).mean()


def test_compiled_networks_have_the_same_gradients(monkeypatch):
    calls, compile_ = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **kwargs: calls.append(module) or compile_(module, **kwargs))
    modules, x = {"linear": torch.nn.Linear(3, 2)}, torch.randn(4, 3)
    found = []
    for compiled in (False, True):
        with workers(modules, 1, squared, compiled) as team:
            team.backward((x,))
        found.append(modules["linear"].weight.grad.clone())
        modules["linear"].zero_grad()
    assert calls == [modules["linear"]]
    assert torch.allclose(*found, rtol=1e-5)


def test_noisy_timesteps_come_more_often_at_first(tokenizer_folder):
    data = captioned(diffusion_parts(tokenizer_folder)[3])
    noisy, even = (
        draw_batch(data, data.ids[:1], 400, 1000, (0.6, 1.0), 0, 0, spent)[3].float() for spent in (0.2, 0.5)
    )
    assert 450 < even.mean() < 550 < noisy.mean() < 680
    assert even.max() <= 999 and noisy.min() < 200


def test_a_state_of_another_architecture_is_refused_by_name(tmp_path):
    State({"vae": TINY.autoencoder()}).save(tmp_path / "state.safetensors")
    other = State({"vae": Architecture(size=32, vae=(8, 8, 8, 16)).autoencoder()})
    with pytest.raises(UserError, match="not a training state"):
        other.load(tmp_path / "state.safetensors")
    (tmp_path / "state.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match="not a training state"):
        other.load(tmp_path / "state.safetensors")


def test_noise_levels_are_stable_diffusions():
    levels = ddim().alphas_cumprod
    assert levels[0] == pytest.approx(0.99915, abs=1e-5) and levels[-1] == pytest.approx(0.00466, abs=1e-5)


def test_the_learning_rate_warms_up_and_falls():
    schedule = Schedule(1.0, warmup=0.1)
    assert schedule.rate(0.0) == 0 and 0.4 < schedule.rate(0.05) < 0.5 < 0.9 < schedule.rate(0.1) < 1
    assert schedule.rate(1.0) == pytest.approx(0.02) and 0.4 < schedule.rate(0.5) < 0.6


def test_pairs_come_later():
    data = Captioned(torch.zeros(40, 4, 1, 1), torch.zeros(40, 77), np.arange(40) % 2 == 0)
    shares = [data.pairs[choose_batch(data, 20, spent, np.random.default_rng(0))].mean() for spent in (0.0, 0.9)]
    assert shares == list(PAIRS)


def test_the_whole_training_writes_a_checkpoint_that_diffusers_draws_with(tmp_path):
    output, work = tmp_path / "out", tmp_path / "work"
    config = TrainConfig(output=output, work=work, steps=3, scenes=16, batch_size=4, workers=1)
    train(config, TINY)
    pipe = StableDiffusionPipeline.from_pretrained(output, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    prompt = json.loads((output / "model_index.json").read_text())["_default_prompt"]
    first, second = (
        np.asarray(pipe(text, num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]).astype(int)
        for text in (prompt, "a white cat 🐈 in the snow")
    )
    assert first.shape == (32, 32, 3) and first.std() > 1 and (first != second).any()
    assert {p.name for p in (output / "tokenizer").iterdir()} >= {"vocab.json", "merges.txt", "tokenizer.json"}
    weights = load_file(output / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(tensor.dtype == torch.float16 for tensor in weights.values())
    assert not list(tmp_path.rglob("*.partial"))
    latents = load_file(work / "latents.safetensors")["latents"]
    assert latents.float().std() == pytest.approx(1, abs=0.01)
    assert pipe.vae.config.scaling_factor != 0.18215


def test_training_goes_on_from_the_exported_weights_when_its_state_is_gone(tmp_path):
    output = tmp_path / "out"
    train(TrainConfig(output=output, work=tmp_path / "work", steps=3, scenes=16, batch_size=4), TINY)
    before = load(output)[2].state_dict()
    fresh = TrainConfig(
        output=output, work=tmp_path / "gone", steps=2, scenes=16, batch_size=4, resume=True, stage="diffusion"
    )
    train(fresh, TINY)
    after = load(output)[2].state_dict()
    distance = sum(float((after[n].float() - before[n].float()).abs().sum()) for n in before)
    assert 0 < distance < 0.01 * sum(float(v.float().abs().sum()) for v in before.values())


def test_held_out_scenes_and_pixels():
    unseen = held_out(3, 32, 1)
    assert unseen.shape == (3, 32, 32, 3) and unseen.std() > 10
    assert (to_pixels(to_tensor(unseen)) == unseen).all()
    assert psnr(unseen, np.clip(unseen.astype(int) + 1, 0, 255).astype(np.uint8)) > 45


def test_scenes_are_drawn_once_and_again_for_another_size(tmp_path):
    path = tmp_path / "scenes.npy"
    first = np.array(scenes(path, 6, 32, 0))
    stamp = path.stat().st_mtime_ns
    assert (scenes(path, 6, 32, 0) == first).all() and path.stat().st_mtime_ns == stamp
    assert scenes(path, 6, 40, 0).shape == (6, 40, 40, 3)


def test_encoding_does_not_depend_on_the_workers(pixels):
    vae = TINY.autoencoder()
    assert torch.allclose(encode(vae, pixels, 1, 8), encode(vae, pixels, 2, 8), atol=1e-6)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--stage", "vae"], "--stage"),
        (["--minutes", "0"], "--minutes"),
        (["--steps", "0"], "--steps"),
        (["--batch-size", "2"], "--batch-size"),
        (["--scenes", "10"], "--scenes"),
        (["--workers", "0"], "--workers"),
    ],
)
def test_a_wrong_flag_is_refused_by_name(flags, said):
    from utils.command_line import parse

    with pytest.raises(UserError, match=said):
        parse(TrainConfig, flags, "", "")


def test_the_script_says_what_is_missing_in_one_line(tmp_path):
    command = [sys.executable, "demo/train.py", "--stage", "diffusion", "--scenes", "16", "--batch-size", "4"]
    command += ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "out")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2, result.stderr
    assert "--stage autoencoder" in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
