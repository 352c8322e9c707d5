"""Fine-tuning in this process: targets, folders, refusals, and a disk that fills."""

from __future__ import annotations

import resource
import shutil
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from safetensors.torch import load_file

from demo.config import TrainConfig
from demo.diffusion import GAMMA, Captioned, choose_batch, ddim, denoising_loss
from demo.finetune import finetune
from demo.pictures import loss_curve, scenes
from demo.training import Budget, Schedule, State, fit
from models.checkpoint import load_checkpoint
from models.random_checkpoint import random_checkpoint, save
from utils.command_line import parse
from utils.errors import UserError

TYPES = ("epsilon", "v_prediction", "sample")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A function that writes a tiny checkpoint of a prediction type, once, and returns its folder."""
    folder = tmp_path_factory.mktemp("base")

    def of(prediction_type):
        if not (folder / prediction_type).exists():
            save(random_checkpoint("tiny", 0, prediction_type), folder / prediction_type)
        return folder / prediction_type

    return of


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for index, colour in enumerate(("red", "blue", "green")):
        Image.new("RGB", (40, 32), colour).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a {colour} wall \N{GRINNING FACE}" + " very" * (index * 100))
    return folder


def configured(start, pictures, work, **changes):
    flags = {"finetune_from": start, "images": pictures, "work": work, "steps": 2, "batch_size": 2, "workers": 1}
    return TrainConfig(**(flags | changes))


def outputs(config):
    checkpoint = load_checkpoint(str(config.output))
    return {name: getattr(checkpoint, name).state_dict() for name in ("text_encoder", "unet", "vae")}


@pytest.mark.parametrize("prediction_type", TYPES)
def test_each_prediction_type_is_kept_and_the_autoencoder_is_frozen(base, images, tmp_path, capsys, prediction_type):
    config = configured(base(prediction_type), images, tmp_path, resolution=32)
    state = finetune(config)
    assert state.step == 2 and np.isfinite(state.losses).all()
    assert config.output == tmp_path / "finetuning" / "checkpoint"
    before, after = load_checkpoint(str(base(prediction_type))), load_checkpoint(str(config.output))
    assert after.scheduler_config == before.scheduler_config and after.prediction_type == prediction_type
    assert (after.height, after.width) == (32, 32) and after.default_prompt == "a red wall \N{GRINNING FACE}"
    assert after.tokenizer_json == before.tokenizer_json
    changed = {}
    for name, tensors in outputs(config).items():
        old = getattr(before, name).state_dict()
        changed[name] = [key for key, value in tensors.items() if not torch.equal(value, old[key].half().float())]
    assert changed["vae"] == [] and len(changed["unet"]) > 100 and len(changed["text_encoder"]) > 20
    stored = load_file(config.output / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(stored[name], state.parameters[f"unet.{name}"].half()) for name in stored)
    assert "2 captions are longer than 77 tokens" in capsys.readouterr().err


@pytest.mark.parametrize("prediction_type", TYPES)
def test_the_loss_is_that_of_what_the_checkpoint_predicts(prediction_type):
    """Against diffusers' training scheduler: a perfect UNet has no loss, and an error of 1 costs the weight."""
    config = {"beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": prediction_type}
    reference = DDPMScheduler(**config)
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(4, 2, 3, 3, generator=generator) for _ in range(2))
    timesteps = torch.tensor([0, 300, 700, 999])
    noisy = reference.add_noise(latents, noise, timesteps)
    target = {"epsilon": noise, "sample": latents, "v_prediction": reference.get_velocity(latents, noise, timesteps)}

    class Text(torch.nn.Module):
        def forward(self, ids):
            return type("Output", (), {"last_hidden_state": ids})

    class Perfect(torch.nn.Module):
        off = 0.0

        def forward(self, given, steps, context, return_dict):
            assert torch.allclose(given, noisy, atol=1e-6) and torch.equal(steps, timesteps)
            return (target[prediction_type] + self.off,)

    modules = {"unet": Perfect(), "text_encoder": Text()}
    loss = partial(denoising_loss, ddim(config), modules, latents, torch.zeros(4, 77).long(), noise, timesteps)
    assert loss() == pytest.approx(0, abs=1e-9)
    modules["unet"].off = 1.0
    level = reference.alphas_cumprod[timesteps].double()
    snr = level / (1 - level)
    cut = snr.clamp(max=GAMMA)
    expected = {"epsilon": cut / snr, "sample": (1 + cut) / (1 + GAMMA), "v_prediction": (1 + cut) / (1 + snr)}
    assert loss() == pytest.approx(expected[prediction_type].mean().item(), rel=1e-4)


def test_each_picture_comes_once_before_one_comes_twice():
    data = Captioned(torch.zeros(5, 4, 1, 1), torch.zeros(5, 77))
    rng = np.random.default_rng(0)
    assert sorted(choose_batch(data, 5, 0, rng)) == [0, 1, 2, 3, 4]
    assert sorted(np.bincount(choose_batch(data, 12, 0, rng))) == [2, 2, 2, 3, 3]
    assert len(set(choose_batch(data, 3, 0, rng))) == 3


@pytest.fixture(scope="module")
def once(base, images, tmp_path_factory):
    """The folder of a fine-tuning of two steps."""
    work = tmp_path_factory.mktemp("once")
    finetune(configured(base("epsilon"), images, work))
    return work


@pytest.fixture
def done(once, tmp_path):
    """A copy of it that a test may go on with."""
    return shutil.copytree(once, tmp_path / "work")


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_the_state_of_the_same_fine_tuning_is_gone_on_from(base, images, done, tmp_path):
    state = finetune(configured(base("epsilon"), images, done, steps=3, resume=True))
    assert state.step == len(state.losses) == 3
    others = tmp_path / "images"
    others.mkdir()
    Image.new("RGB", (32, 32)).save(others / "a.png")
    (others / "a.txt").write_text("a black wall")
    for change in ({"images": others}, {"finetune_from": base("sample")}, {"resolution": 32}):
        with pytest.raises(UserError, match="the state of another training"):
            finetune(configured(base("epsilon"), images, done, resume=True, **change))


def test_a_learning_rate_that_is_too_high_is_told_and_the_checkpoint_stays(base, images, done):
    before = contents(done)
    with pytest.raises(UserError, match="lower --learning-rate"):
        finetune(configured(base("epsilon"), images, done, steps=20, learning_rate=1e38))
    assert contents(done) == before


def test_a_checkpoint_that_is_none_is_told_by_the_flag(base, images, tmp_path):
    with pytest.raises(UserError, match=r"--finetune-from .*model_index\.json"):
        finetune(configured(images, images, tmp_path))
    assert not (tmp_path / "finetuning").exists()


def test_pictures_are_checked_before_anything_is_written(base, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="it is empty"):
        finetune(configured(base("epsilon"), tmp_path / "empty", tmp_path / "work"))
    assert not (tmp_path / "work").exists()


@pytest.fixture
def folders(tmp_path):
    """Folders to name in flags."""
    for name in ("start", "pictures", "thesis"):
        (tmp_path / name).mkdir()
    (tmp_path / "thesis" / "chapter").write_text("years of work")
    (tmp_path / "file").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--images pictures", "--images is for --finetune-from"),
        ("--resolution 64", "--resolution is for --finetune-from"),
        ("--finetune-from start", "--images is missing"),
        ("--finetune-from nowhere --images pictures", "--finetune-from .*no such folder"),
        ("--finetune-from start --images nowhere", "--images .*no such folder"),
        ("--finetune-from start --images file", "--images .*no such folder"),
        ("--finetune-from start --images pictures --stage diffusion", "exclude each other"),
        ("--finetune-from start --images pictures --resolution 60", "--resolution must be a multiple of 8"),
        ("--finetune-from start --images pictures --resolution 0", "--resolution must be"),
        ("--finetune-from start --images pictures --batch-size 0", "--batch-size must be 1 or more"),
        ("--finetune-from start --images pictures --learning-rate nan", "--learning-rate must be above 0"),
        ("--finetune-from start --images pictures --checkpoint-minutes 0", "--checkpoint-minutes must be above 0"),
        ("--finetune-from start --images pictures --output start", "is the checkpoint to begin with"),
        ("--finetune-from start --images pictures --output thesis", "is not empty and no checkpoint"),
        ("--finetune-from start --images pictures --output file", "--output .*is no folder"),
        ("--finetune-from start --images pictures --work file/below", "--work .*is no folder"),
    ],
)
def test_a_wrong_flag_is_refused_by_name(folders, monkeypatch, flags, said):
    monkeypatch.chdir(folders)
    with pytest.raises(UserError, match=said):
        parse(TrainConfig, flags.split(), "", "")


def test_the_bundled_checkpoint_is_no_default_output(folders):
    config = TrainConfig(finetune_from=folders / "start", images=folders / "pictures")
    plain = TrainConfig()
    assert plain.output.name == "checkpoint" and plain.output.parent.name == "demo"
    assert config.output == config.work / "finetuning" / "checkpoint" != plain.output
    assert (config.batch_size, config.learning_rate) != (plain.batch_size, plain.learning_rate)
    assert TrainConfig(finetune_from=folders / "start", images=folders / "pictures", batch_size=1).worker_count() == 1


@contextmanager
def full_disk(room):
    """Let no file grow beyond ``room`` bytes, as a full disk would (Python ignores the signal)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_last_state(tmp_path):
    path = tmp_path / "state.safetensors"
    state = State({"net": torch.nn.Linear(100, 100)})
    state.save(path)
    before = path.read_bytes()
    modules = state.modules
    batch = partial(lambda *_: [torch.ones(2, 100)])

    def loss_of(team, inputs):
        return (team["net"](inputs) ** 2).mean()

    with full_disk(1000):
        with pytest.raises(UserError, match=r"state\.safetensors can't be written \(.*what was there before is intact"):
            fit(state, batch, loss_of, Schedule(1e-2), Budget(1, steps=3), lambda state: state.save(path))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]
    fresh = State(modules)
    fresh.load(path)
    assert fresh.step == 0


def test_a_full_disk_leaves_the_last_checkpoint(base, images, done, monkeypatch):
    before = contents(done)
    state, weights = (
        (done / "finetuning" / name).stat().st_size
        for name in ("diffusion.safetensors", "checkpoint/unet/diffusion_pytorch_model.safetensors")
    )
    config = configured(base("epsilon"), images, done, steps=3, resume=True)
    with full_disk(state // 2), pytest.raises(UserError, match=r"diffusion\.safetensors can't be written"):
        finetune(config)
    assert contents(done) == before
    monkeypatch.setattr(State, "save", lambda state, path: None)  # so that the weights are what does not fit
    with full_disk(weights // 2), pytest.raises(UserError, match=r"finetuning/checkpoint can't be written"):
        finetune(config)
    assert contents(done) == before


def test_a_full_disk_stops_scenes_and_curves_in_one_line(tmp_path):
    with full_disk(500):
        with pytest.raises(UserError, match=r"scenes\.npy can't be written"):
            scenes(tmp_path / "scenes.npy", 3, 32, 0)
        with pytest.raises(UserError, match=r"loss\.png can't be written"):
            loss_curve(list(np.random.default_rng(0).random(300)), tmp_path / "loss.png", "test")
    assert list(tmp_path.iterdir()) == []
