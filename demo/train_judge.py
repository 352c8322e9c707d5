"""Train the judge of the demo's pictures on scenes that are drawn here, and freeze it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo.judge_config import JudgeConfig
from utils.allocator import HUGE_PAGES, KEPT, restart_with
from utils.command_line import parse
from utils.errors import run_script

EXAMPLES = """
  python demo/train_judge.py
  python demo/train_judge.py --scenes 8000 --epochs 6 --output judge.safetensors
"""


def main(argv: list[str]) -> None:
    """Parse the flags and train."""
    config = parse(JudgeConfig, argv, __doc__ or "", EXAMPLES)
    restart_with(HUGE_PAGES | KEPT)
    from demo.judge_training import train

    train(config)


if __name__ == "__main__":
    run_script(main)
