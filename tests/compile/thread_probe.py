"""Run a parallel kernel as an engine does, then print as JSON where each thread of this process may run, and ran.

python thread_probe.py [THREADS]
"""

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import tvm
import tvm.tirx.script.builder.ir as T

from compiler.kernels.tir import argument, prim_func
from runtime.engine import set_num_threads

TASKS = 64
LAST_CPU = 36  # field of /proc/PID/stat behind the name: "processor"


def fill():
    values = argument("values", (TASKS,), "float32")
    with T.parallel(TASKS) as i:
        T.buffer_store(values, T.float32(1), [i])


def threads():
    """Return the mask of each thread, and the logical CPU that it ran on last."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        mask = re.search(r"Cpus_allowed_list:\s*(\S+)", (task / "status").read_text())[1]
        found.append([mask, int((task / "stat").read_text().rpartition(")")[2].split()[LAST_CPU])])
    return found


count = set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else None)
module = tvm.IRModule({"main": prim_func(fill).with_attr("global_symbol", "main")})
values = tvm.runtime.empty((TASKS,), "float32")
run = tvm.compile(module, target=tvm.target.Target("llvm"))["main"]
for _ in range(100):
    run(values)
assert values.numpy().sum() == TASKS
print(json.dumps({"threads": count, "found": threads()}))
