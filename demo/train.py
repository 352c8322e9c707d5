"""Train the demo checkpoint from nothing, on scenes that are drawn here, or fine-tune a checkpoint on your pictures."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo.config import TrainConfig
from utils.command_line import parse
from utils.errors import run_script

EXAMPLES = """
  python demo/train.py --autoencoder-minutes 25 --minutes 60
  python demo/train.py --stage diffusion --minutes 150 --resume
  python demo/train.py --finetune-from demo/checkpoint --images my-pictures --output mine --steps 400
"""
# glibc returns each large tensor to the system and fetches the next one anew: half of the time of a step
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def keep_memory() -> None:
    """Start this script anew with an allocator that keeps its memory, unless that is so already or set otherwise."""
    missing = {name: value for name, value in ALLOCATOR.items() if name not in os.environ}
    if sys.platform == "linux" and missing:
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | missing)  # noqa: S606 - no shell is wanted


def main(argv: list[str]) -> None:
    """Parse the flags and train or fine-tune."""
    config = parse(TrainConfig, argv, __doc__ or "", EXAMPLES)
    keep_memory()
    if config.finetune_from is not None:
        from demo.finetune import finetune

        finetune(config)
        return
    from demo.architecture import Architecture
    from demo.stages import train

    train(config, Architecture())


if __name__ == "__main__":
    run_script(main)
