"""Judge pictures of held-out captions: by a compiled artifact, or by a checkpoint in diffusers."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo.judge_config import EvaluateConfig
from utils.command_line import parse
from utils.errors import run_script

EXAMPLES = """
  python demo/evaluate.py --artifacts-dir artifacts --num-images 240 --json scores.json --grid scores.png
  python demo/evaluate.py --model demo/checkpoint --num-images 1440 --steps 20 --guidance-scale 5
"""


def main(argv: list[str]) -> None:
    """Parse the flags and judge."""
    config = parse(EvaluateConfig, argv, __doc__ or "", EXAMPLES)
    from demo.evaluation import evaluate  # only now, so that a bad flag is told at once

    evaluate(config)


if __name__ == "__main__":
    run_script(main)
