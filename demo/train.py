"""Train the demo checkpoint from nothing, on scenes that are drawn here, or fine-tune a checkpoint on your pictures."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo.config import TrainConfig
from utils.allocator import HUGE_PAGES, KEPT, restart_with
from utils.command_line import parse
from utils.errors import run_script

EXAMPLES = """
  python demo/train.py --autoencoder-minutes 25 --minutes 60
  python demo/train.py --stage diffusion --minutes 150 --resume
  python demo/train.py --finetune-from demo/checkpoint --images my-pictures --output mine --steps 400
"""


def main(argv: list[str]) -> None:
    """Parse the flags and train or fine-tune."""
    config = parse(TrainConfig, argv, __doc__ or "", EXAMPLES)
    restart_with(HUGE_PAGES | KEPT)
    if config.finetune_from is not None:
        from demo.finetune import finetune

        finetune(config)
        return
    from demo.architecture import Architecture
    from demo.stages import train

    train(config, Architecture())


if __name__ == "__main__":
    run_script(main)
