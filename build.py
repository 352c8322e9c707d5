"""Compile a Stable Diffusion checkpoint into an artifact that inference.py runs."""

from __future__ import annotations

from compiler import build
from utils.command_line import parse
from utils.config import BuildConfig
from utils.errors import run_script

EXAMPLES = """
  python build.py                                       the bundled demo model, for this CPU
  python build.py --model ./stable-diffusion-v1-5 --output-dir sd15
  python build.py --model random:sd15 --height 512 --width 768 --output-dir wide
  python build.py --cpu x86-64-v3 --output-dir any      for any CPU with AVX2
  python build.py --target cuda --apply-tome            for the GPU that is here, with token merging
  python build.py --target cuda --cuda-arch sm_80       for another GPU; none is needed here
  python build.py --disable flash_attention,layout --enable-debug
"""


def main(argv: list[str]) -> None:
    """Build what the command line asks for."""
    build(parse(BuildConfig, argv, __doc__ or "", EXAMPLES))


if __name__ == "__main__":
    run_script(main)
