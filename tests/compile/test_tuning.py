"""Tuning: where trials go, what becomes of candidates that fail, and that a record reaches the code."""

import os
import sys
import time
from collections import Counter

import cloudpickle
import numpy as np
import pytest
from small_component import ALL_ON, CPU, block_component, load
from test_records import KEY, TASKS, folder_of

from compiler.kernels.tiling import choices
from compiler.kernels.tunable import TUNABLE
from compiler.native import compile_component
from compiler.package import write_component
from compiler.trace import trace
from compiler.tuning import measure
from compiler.tuning.measure import Workshop
from compiler.tuning.records import Writer, read
from compiler.tuning.search import PATIENCE, tune
from compiler.tuning.tasks import Task, tasks
from compiler.verify import verify

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers can't import the tests


class FakeWorkshop:
    """Times candidates by a formula."""

    def __init__(self, seconds):
        self.seconds, self.asked = seconds, []

    def candidates(self, key, many):
        for chosen in many:
            self.asked.append((key, chosen))
            result = self.seconds(key, chosen)
            yield chosen, result if isinstance(result, str) else [result]


def task_list(calls=(1, 1, 1)):
    return [Task(key, plain, count) for (key, plain), count in zip(TASKS, calls, strict=True)]


def tuned(tmp_path, seconds, calls=(1, 1, 1), trials=0, minutes=0.0):
    workshop, writer = FakeWorkshop(seconds), Writer(tmp_path, CPU)
    tune(task_list(calls), writer, workshop, minutes, trials)
    return workshop, read(folder_of(tmp_path))


class TestLoop:
    def test_what_is_best_for_a_task_is_tried_first_for_the_others(self, tmp_path):
        def seconds(_key, chosen):
            return 0.01 * (1 - 0.5 * (chosen == {"stripes": 2, "together": 8}))

        first, second, _ = (key for key, _ in TASKS)
        workshop, _ = tuned(tmp_path, seconds, calls=(100, 1, 1), trials=400)
        tried = [chosen for key, chosen in workshop.asked if key == second and chosen]
        found = [chosen for key, chosen in workshop.asked if key == first].index({"stripes": 2, "together": 8})
        assert found > 1 and tried[0] == {"stripes": 2, "together": 8}

    def test_finds_the_best_of_a_space_and_ends(self, tmp_path):
        """Each choice is measured once but for the confirmations; the loop ends when nothing is left to try."""

        def seconds(_key, chosen):
            return 0.01 * (1 - 0.1 * (chosen.get("stripes") == 8) - 0.1 * (chosen.get("together") == 2))

        workshop, records = tuned(tmp_path, seconds)
        for key, _ in TASKS:
            assert records.best(key)[0] == {"stripes": 8, "together": 2}
        assert [chosen for _, chosen in workshop.asked[:3]] == [{}, {}, {}], "the kernels as they are come first"
        assert workshop.asked[3][1] != {}

    def test_trials_go_where_time_is(self, tmp_path):
        workshop, _ = tuned(tmp_path, lambda key, chosen: 0.01, calls=(100, 1, 1), trials=20)
        counts = Counter(key for key, _ in workshop.asked)
        assert sum(counts.values()) == 20 and counts[KEY] > 2 * max(counts[key] for key, _ in TASKS[1:])

    def test_a_task_without_gain_gives_up(self, tmp_path):
        space = np.prod([len(values) for values in choices(TUNABLE["group_norm"].tiling).values()])
        workshop, _ = tuned(tmp_path, lambda key, chosen: 0.01)
        assert all(count <= min(space, PATIENCE + 8) for count in Counter(key for key, _ in workshop.asked).values())

    def test_whatever_is_the_best_was_timed_again(self, tmp_path):
        """Each choice is lucky once: after the first of them is found out, the next one is not believed either."""
        times = Counter()

        def seconds(key, chosen):
            times[key, tuple(chosen.items())] += 1
            return 0.009 if chosen and times[key, tuple(chosen.items())] == 1 else 0.01

        _, records = tuned(tmp_path, seconds)
        assert not any(records.gains(key) for key, _ in TASKS)

    def test_a_machine_that_is_slow_at_times_does_not_make_gains(self, tmp_path):
        """Spells of some measurements in which all takes twice as long; only one choice is faster, and often found."""
        found = []
        for seed in range(8):
            rng, speeds = np.random.default_rng(seed), []

            def seconds(_key, chosen, rng=rng, speeds=speeds):
                if not speeds:
                    speeds.extend([rng.integers(1, 3)] * rng.integers(1, 10))
                return 0.01 * speeds.pop() * (0.8 if chosen == {"stripes": 8} else 1)

            _, records = tuned(tmp_path / str(seed), seconds)
            found += [records.best(key)[0] for key, _ in TASKS if records.gains(key)]
        assert len(found) >= 8 and all(chosen == {"stripes": 8} for chosen in found)

    def test_minutes_end_it(self, tmp_path):
        start = time.monotonic()
        tuned(tmp_path, lambda key, chosen: time.sleep(0.05) or 0.01, minutes=0.5 / 60)
        assert time.monotonic() - start < 2

    def test_failures_are_kept_and_not_tried_again(self, tmp_path):
        def seconds(_key, chosen):
            return "running took too long" if chosen.get("stripes") == 8 else 0.01

        workshop, records = tuned(tmp_path, seconds)
        assert records.best(KEY)[0].get("stripes") != 8
        failed = [chosen for key, chosen in workshop.asked if chosen.get("stripes") == 8 and key == KEY]
        assert failed and all(failed.count(chosen) == 1 for chosen in failed)
        again, _ = tuned(tmp_path, seconds)
        assert not any(asked in workshop.asked for asked in again.asked if asked[1]), "records are not measured again"

    def test_a_kernel_that_fails_as_it_is_gets_no_trials(self, tmp_path):
        workshop, _ = tuned(tmp_path, lambda key, chosen: "running took too long" if key == KEY else 0.01, trials=20)
        assert [chosen for key, chosen in workshop.asked if key == KEY] == [{}]

    def test_an_interrupted_run_is_taken_up(self, tmp_path):
        first, records = tuned(tmp_path, lambda key, chosen: 0.01, trials=5)
        assert len(records) == 5
        second, records = tuned(tmp_path, lambda key, chosen: 0.01, trials=5)
        assert len(records) == 10 and not any(asked in first.asked for asked in second.asked)


def crash(*_arguments):
    os.abort()


def hang(*_arguments):
    time.sleep(60)


def give_nan(path, arguments, threads):
    raise ValueError("the result is not finite")


class TestWorkshop:
    def test_real_candidates_in_processes_of_their_own(self):
        with Workshop(CPU.target, 2) as workshop:
            (_, own), (_, other), (_, wrong) = workshop.candidates(KEY, [{}, {"stripes": 8}, {"stripes": 3}])
            assert all(0 < value < 1 for value in own + other) and "no stripes 3" in wrong
            assert not any(workshop.folder.iterdir())
        assert not workshop.folder.exists()

    @pytest.mark.parametrize(("happens", "word"), [(crash, "running"), (hang, "too long"), (give_nan, "not finite")])
    def test_a_candidate_that_breaks(self, monkeypatch, happens, word):
        """It is told in a line, and the next one runs."""
        with Workshop(CPU.target, 2) as workshop:
            workshop.runner = measure.PopenPoolExecutor(max_workers=1, timeout=2)
            run = measure.run
            monkeypatch.setattr(measure, "run", happens)
            ((_, result),) = workshop.candidates(KEY, [{}])
            assert isinstance(result, str) and word in result and "\n" not in result
            monkeypatch.setattr(measure, "run", run)
            workshop.runner._timeout = measure.RUN_SECONDS
            ((_, result),) = workshop.candidates(KEY, [{}])
            assert isinstance(result, list)

    def test_nan_is_a_failure(self, tmp_path, monkeypatch):
        path = tmp_path / "kernel.so"
        arguments = measure.build(KEY, {}, CPU.target, path)
        assert len(measure.run(path, arguments, 2)) >= measure.REPEATS
        monkeypatch.setattr(measure, "random_array", lambda dtype, shape, random: np.full(shape, np.nan, np.float32))
        with pytest.raises(ValueError, match="not finite"):
            measure.run(path, arguments, 2)


def test_a_record_reaches_the_code_and_keeps_the_meaning(tmp_path):
    """Every tunable kernel of a component gets another tiling; the build is told and verified."""
    component = block_component()
    found = tasks(component, CPU, ALL_ON)
    assert {task.key[0] for task in found} >= {"group_norm"} and all(task.calls >= 1 for task in found)
    writer = Writer(tmp_path / "db", CPU)
    for task in found:
        field, values = next(iter(choices(TUNABLE[task.key[0]].tiling).items()))
        writer.commit(task.key, task.workload, {}, [0.002])
        writer.commit(task.key, task.workload, {field: values[1]}, [0.001])
    records = read(folder_of(tmp_path / "db"))
    traced = trace(component)
    native = compile_component(traced, CPU, ALL_ON, None, records)
    by_record = {origin for origin in native.origins.values() if origin.endswith(" by record")}
    assert by_record == {f"{task.key[0]} by record" for task in found} and "tuned" in native.used
    entry = write_component(traced, native, tmp_path, {})
    assert min(verify(component, load(entry, component.name, tmp_path), "float32").psnr.values()) >= 60
    off = compile_component(traced, CPU, {**ALL_ON, "tuned": False}, None, records)
    assert not any(origin.endswith(" by record") for origin in off.origins.values()) and "tuned" not in off.used
