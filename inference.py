#!/usr/bin/env python
"""Make pictures from a prompt with a model that build.py compiled."""

from __future__ import annotations

import sys

from utils.allocator import HUGE_PAGES, restart_with
from utils.command_line import parse
from utils.config import RunConfig
from utils.errors import run_script

EXAMPLES = """
  python inference.py --prompt "a red circle on a blue background" --seed 1
  python inference.py --prompt "a castle" --negative-prompt "people" --scheduler-label euler-ancestral --steps 30
  python inference.py --num-images 4 --guidance-scale 5 --output-image castle.png --enable-debug
"""


def main(argv: list[str]) -> None:
    config = parse(RunConfig, argv, __doc__ or "", EXAMPLES)
    restart_with(HUGE_PAGES)
    # TVM's Python imports torch where it is installed: two seconds and 200 MB that nothing here needs.
    sys.modules.setdefault("torch", None)
    from runtime.run import run  # only now, so that a bad flag is told at once

    run(config)


if __name__ == "__main__":
    run_script(main)
