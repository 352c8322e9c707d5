"""From the flags to a tuner: the tasks of all components of a checkpoint, and the database that records go to."""

from __future__ import annotations

from dataclasses import replace

from compiler.lock import locked
from compiler.optimisations import chosen
from compiler.target import Cpu, require_runs_here, resolve_target
from compiler.tuning.measure import Workshop
from compiler.tuning.records import Writer, kind_of
from compiler.tuning.remote import RemoteWorkshop, servers
from compiler.tuning.search import tune
from compiler.tuning.tasks import Task, tasks
from models.checkpoint import load_checkpoint
from models.components import components
from runtime.engine import set_num_threads
from utils.config import BuildConfig
from utils.progress import say


def _workshop(config: BuildConfig, cpu: Cpu) -> Workshop:
    threads = set_num_threads(config.num_threads)
    if config.tracker is None:
        return Workshop(cpu.target, threads)
    say("--tracker: its servers run whatever they are sent; use those of your own network only")
    return RemoteWorkshop(cpu.target, threads, config.tracker, kind_of(cpu).name, cpu.machine.unit == "amx")


def tune_model(config: BuildConfig) -> None:
    """Tune the kernels of the model that ``config`` describes, for as long as it says.

    Raises:
        UserError: the tracker does not answer, the checkpoint can't be read, the database can't be written, or
            somebody else tunes into it.
    """
    cpu = resolve_target(config.target, config.precision, config.cpu)
    require_runs_here(cpu)
    cpu = replace(cpu, machine=replace(cpu.machine, winograd_tile=config.winograd_tile))
    folder = config.database_dir / kind_of(cpu).name
    if config.tracker is not None:
        servers(config.tracker, kind_of(cpu).name)
    with locked("--database-dir", folder, "tunes", "wait for it, or name another folder"):
        writer = Writer(config.database_dir, cpu)
        checkpoint = load_checkpoint(config.model)
        size = checkpoint.size(config.height, config.width)
        found: dict[tuple[str, str], Task] = {}
        for part in components(checkpoint, *size, config.batch_size, config.merging):
            for task in tasks(part, cpu, chosen(config)):
                before = found.get(task.key)
                found[task.key] = task if before is None else replace(task, calls=task.calls + before.calls)
        with _workshop(config, cpu) as workshop:
            tune(list(found.values()), writer, workshop, config.tune_minutes, config.tune_trials)
