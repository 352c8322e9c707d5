"""Measure TVMerge beside its peers: pictures, single optimisations, layers, token merging; and compare two runs."""

from __future__ import annotations

from benchmarks.flags import BenchmarkConfig
from utils.command_line import parse
from utils.errors import run_script

EXAMPLES = """
  python benchmark.py --json demo.json --report outputs/report        the demo model, all backends
  python benchmark.py --json sd15.json --model random:sd15 --backends openvino,tvm --steps 5
  python benchmark.py --json ladder.json --ladder --runs 3            what each optimisation is worth
  python benchmark.py --json tome.json --tome-sweep 0,0.2,0.4,0.6 --steps 20 --judge-images 120
  python benchmark.py --json more.json --throughput 10 --latency-report 100 --backends tvm,openvino
  python benchmark.py --json slow.json --disable winograd --backends tvm,eager --runs 15
  python benchmark.py --compare old.json new.json                     exits with 1 where something became slower
"""


def main(argv: list[str]) -> None:
    """Measure or compare what the flags say."""
    config = parse(BenchmarkConfig, argv, (__doc__ or "").splitlines()[0], EXAMPLES)
    from benchmarks import measure  # only now, so that --help and a bad flag are told at once

    measure.run(config)


if __name__ == "__main__":
    run_script(main)
