"""What an artifact says of the memory that it takes, and what it takes."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from small_component import block_component, load, save

from models.checkpoint import load_checkpoint
from models.components import components
from runtime.quality import FLOOR, psnr
from utils.config import ROOT

PEAK = """
import sys
from pathlib import Path
import numpy as np, tvm
from runtime.artifact import Artifact
from runtime.engine import Engine, set_num_threads
from utils.cpu import permit_tiles
from utils.memory import peak_memory
permit_tiles()
set_num_threads(None)
engine = Engine(Artifact(Path(sys.argv[1])), "vae_decoder", tvm.cpu())
latent, before = np.load(sys.argv[2]), peak_memory()
picture = engine("decode", latent)
print(peak_memory() - before)
np.save(sys.argv[3], picture)
"""


def test_the_workspace_is_what_the_tensors_take(tmp_path):
    functions = save(block_component(), tmp_path).functions
    pair, single = (functions[name].workspace for name in ("pair", "single"))
    largest = 2 * 32 * 14 * 9 * 4  # bytes of the first convolution's result
    assert largest <= pair <= 12 * largest
    assert 0.4 * pair <= single <= 0.6 * pair


@pytest.mark.full_size
def test_the_decoder_takes_four_gigabytes_at_1024_pixels_and_leaves_no_seam(tmp_path):
    decoder = components(load_checkpoint("random:sd15"), 1024, 1024, 1)[-1]
    load(save(decoder, tmp_path / "vae"), "vae_decoder", tmp_path / "vae")  # writes the manifest
    latent = np.random.default_rng(0).standard_normal((1, 4, 128, 128), np.float32)
    files = [tmp_path / "latent.npy", tmp_path / "picture.npy"]
    np.save(files[0], latent)
    command = [sys.executable, "-c", PEAK, tmp_path / "vae", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 4e9
    with torch.no_grad():
        expected = decoder.module(torch.from_numpy(latent)).numpy()
    assert psnr(expected, np.load(files[1])) >= FLOOR["float32"]
