#!/usr/bin/env python
"""Make pictures from a prompt with diffusers: the baseline that the compiled model is measured against."""

from __future__ import annotations

from utils.command_line import parse
from utils.config import BaselineConfig
from utils.errors import run_script

EXAMPLES = """
  python inference_basic_sd.py --prompt "a red circle on a blue background" --seed 1
  python inference_basic_sd.py --model random:sd15 --steps 2 --num-threads 2
  python inference_basic_sd.py --scheduler-label euler-ancestral --attention math --height 72 --width 104
"""


def main(argv: list[str]) -> None:
    config = parse(BaselineConfig, argv, __doc__ or "", EXAMPLES)
    from backends.baseline import run  # only now, so that a bad flag is told at once

    run(config)


if __name__ == "__main__":
    run_script(main)
