"""Two files compared: what is found and what is not, at known noise; the table; what can't be compared."""

import json
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import schema
from benchmarks.compare import changes, compare_files, report
from benchmarks.schema import Backend, Environment, Latency, Results, Rung, Throughput
from utils.errors import UserError

CPU = Environment("a CPU", [], 2, 2, None, "Linux", "3.11", {}, None, "2026-01-01T00:00:00Z")
SETTINGS = {"model": "random:tiny", "steps": 20, "dtype": "float32", "runs": 5}
RUNS = st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=7)
FILES = st.dictionaries(st.sampled_from("abcdef"), st.tuples(RUNS, RUNS), min_size=1)
SIZE = "64x64"
STEADY = [1.0, 1.01, 0.99, 1.005, 0.995]


def results(series, **changed):
    return Results(
        CPU, SETTINGS | changed, latency=[Latency(name, SIZE, runs, 0, 0, 0) for name, runs in series.items()]
    )


def compare(old, new):
    return {
        change.name.removeprefix("latency ").removesuffix(f" {SIZE}"): change
        for change in changes(results(old), results(new))
    }


def slower(runs, ratio=1.1):
    return [ratio * value for value in runs]


# --- what is found at known noise ---


def dice(seed):
    return random.Random(seed)  # noqa: S311 - no secret


def session(rng, noise, disturbed=0.0, count=10, runs=5):
    """Return a file's series: normal noise in the logarithms, a drift of up to 1 %, now and then a run 20 % slower."""
    drift, series = rng.uniform(-0.01, 0.01), {}
    for i in range(count):
        sigma = noise if isinstance(noise, float) else noise[i % len(noise)]
        series[str(i)] = [math.exp(drift + rng.gauss(0, sigma)) for _ in range(runs)]
        if rng.random() < disturbed:
            series[str(i)][0] *= 1.2
    return series


def rates(trials, **case):
    """Return how often a series slower by 10 % was found, and how often any of the nine others was flagged."""
    rng, found, wrong = dice(0), 0, 0
    for _ in range(trials):
        old, new = session(rng, **case), session(rng, **case)
        verdicts = [change.verdict for change in compare(old, new | {"0": slower(new["0"])}).values()]
        found += verdicts[0] == "slower"
        wrong += any(verdict != "-" for verdict in verdicts[1:])
    return found / trials, wrong / trials


@pytest.mark.parametrize(
    ("noise", "disturbed", "least_found", "most_wrong"),
    [
        (0.01, 0.0, 1.0, 0.0),  # measured: 1.000, 0.000
        (0.02, 0.0, 0.98, 0.01),  # 0.993, 0.001
        (0.02, 0.2, 0.94, 0.01),  # 0.960, 0.006
        (0.04, 0.0, 0.3, 0.02),  # 0.336, 0.006
        ((0.01, 0.04, 0.01, 0.01), 0.0, 0.99, 0.05),  # 1.000, 0.042
    ],
)
def test_the_rates_that_the_docstring_states(noise, disturbed, least_found, most_wrong):
    found, wrong = rates(1000, noise=noise, disturbed=disturbed)
    assert found >= least_found and wrong <= most_wrong


def test_more_runs_find_more():
    assert rates(200, noise=0.04, runs=10)[0] >= 0.9


@pytest.mark.parametrize("noise", [0.01, 0.02])
def test_right_twenty_times_of_twenty(noise):
    """One file against another of the same code, and against one where a single series became slower or faster."""
    for seed in range(20):
        rng = dice(seed)
        old, same, late, early = (session(rng, noise) for _ in range(4))
        assert {change.verdict for change in compare(old, same).values()} == {"-"}
        for new, ratio, word in ((late, 1.1, "slower"), (early, 1 / 1.1, "faster")):
            found = compare(old, new | {"3": slower(new["3"], ratio)})
            assert [c.verdict for c in found.values()] == ["-"] * 3 + [word] + ["-"] * 6


def test_drift_of_the_machine_is_no_change_but_a_slow_down_of_everything_is():
    old = session(dice(0), 0.005)
    for ratio, verdict in ((1.02, "-"), (1.1, "slower")):
        found = list(compare(old, {name: slower(runs, ratio) for name, runs in old.items()}).values())
        assert {(change.verdict, round(change.ratio, 6)) for change in found} == {(verdict, round(ratio / 1.02, 6))}
        assert "+2.0%" in report(found)


def test_one_series_needs_no_others():
    assert compare({"a": STEADY}, {"a": STEADY})["a"].verdict == "-"
    change = compare({"a": STEADY}, {"a": slower(STEADY)})["a"]
    assert (change.verdict, change.drift) == ("slower", 1.0)
    assert change.ratio == pytest.approx(1.1) and change.interval[0] < 1.1 < change.interval[1]
    assert (change.old, change.new) == pytest.approx((1.0, 1.1))


def test_a_steady_change_too_small_to_matter_is_left():
    assert compare({"a": STEADY}, {"a": slower(STEADY, 1.04)})["a"].verdict == "-"
    assert compare({"a": [1.0] * 5}, {"a": [1.0] * 5})["a"].interval == (1.0, 1.0)


# --- what must hold for any runs ---


def split(pairs):
    return {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}


@settings(max_examples=50, deadline=None)
@given(FILES)
def test_swapping_the_files_swaps_slower_and_faster(pairs):
    old, new = split(pairs)
    there, back = compare(old, new), compare(new, old)
    other = {"slower": "faster", "faster": "slower", "-": "-"}
    assert {name: other[change.verdict] for name, change in there.items()} == {n: c.verdict for n, c in back.items()}
    assert all(change.ratio * back[name].ratio == pytest.approx(1) for name, change in there.items())


@settings(max_examples=50, deadline=None)
@given(FILES, st.randoms(use_true_random=False))
def test_the_order_of_runs_says_nothing(pairs, rng):
    mixed = {name: tuple(rng.sample(runs, len(runs)) for runs in pair) for name, pair in pairs.items()}
    assert compare(*split(mixed)) == compare(*split(pairs))


@settings(max_examples=50, deadline=None)
@given(FILES, st.integers(-20, 20))
def test_the_unit_of_time_says_nothing(pairs, power):
    scaled = {name: tuple(slower(runs, 2.0**power) for runs in pair) for name, pair in pairs.items()}
    before, after = compare(*split(pairs)), compare(*split(scaled))
    for name, change in before.items():
        assert after[name].ratio == pytest.approx(change.ratio)
        assert after[name].interval == pytest.approx(change.interval)


# --- which series ---


def everything(factor=1.0):
    """Return a file with a series of each kind, all of them steady."""
    runs, steps = slower(STEADY, factor), list(range(1, 13))
    return Results(
        CPU,
        SETTINGS,
        backends=[
            Backend("tvm", SIZE, total_seconds=runs, text_seconds=runs, unet_seconds=runs, vae_seconds=runs),
            Backend("openvino", SIZE, skipped="not installed"),
        ],
        ladder=[Rung("layout", runs, runs, 1, 1, 0, 0, 100), Rung("broken", skipped="it failed")],
        attention=[schema.AttentionRow("down0", 8, 64, 64, 40, 2, "flash", runs, 0, 1, 100)],
        winograd=[schema.WinogradRow("mid", 8, 8, 8, 8, 2, "direct", runs, 1, 0, 100)],
        throughput=[
            Throughput("tvm", SIZE, steps, [3 + factor * (n + 0.01 * (n % 2)) for n in steps], 3, 1, [1, 1], 1)
        ],
        latency=[Latency("tvm", SIZE, runs, 1, 1, 1)],
        tome_sweep=[schema.TomeRow("tvm", SIZE, 0.5, "flash", runs, runs, 1, runs, None, None, None, None, None)],
    )


NAMES = [
    *("tvm 64x64 total", "tvm 64x64 text", "tvm 64x64 unet", "tvm 64x64 vae", "ladder layout", "attention down0 flash"),
    *("winograd mid direct", "throughput tvm 64x64, a step", "latency tvm 64x64", "tome tvm 64x64 0.5 flash total"),
    "tome tvm 64x64 0.5 flash unet",
]


def test_every_kind_of_series_is_compared():
    found = changes(everything(), everything(1.2))
    assert [change.name for change in found] == NAMES
    assert {change.verdict for change in found} == {"slower"}
    assert found[7].new == pytest.approx(1.2 * found[7].old) and 0.98 < found[7].old < 1.02, "cost a step, less start"


def test_a_step_that_seems_to_cost_nothing_is_left_out():
    """Six pictures make three slopes; here one of them is negative, which leaves too few."""
    old = replace(
        everything(), throughput=[Throughput("tvm", SIZE, [1, 2, 3, 4, 5, 6], [1, 9, 3, 4, 5, 6], 0, 1, [1, 1], 1)]
    )
    assert {change.name: change.verdict for change in changes(old, old)}[
        "throughput tvm 64x64, a step"
    ] == "too few runs"


def test_rows_of_another_method_or_ratio_are_others():
    old = everything()
    attention, tome = replace(old.attention[0], method="plain"), replace(old.tome_sweep[0], ratio=0.25)
    names = [change.name for change in changes(old, replace(old, attention=[attention], tome_sweep=[tome]))]
    assert names == [name for name in NAMES if not name.startswith(("attention", "tome"))]


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_runs_are_told_in_one_line(count):
    found = compare({"a": STEADY, "b": STEADY}, {"a": slower(STEADY)[:count], "b": STEADY})
    assert found["a"].verdict == "too few runs" and found["a"].interval is None and found["b"].verdict == "-"
    table = report(list(found.values()))
    assert "\n1 series can't be judged with fewer than 3 runs in a file; measure with --runs 5\n" in table


def test_the_table_is_aligned_and_slower_ones_come_first():
    old = dict.fromkeys(("same", "fast", "slow", "slowest", "fine", "good"), STEADY) | {"tiny": [2e-3]}
    new = old | {"fast": slower(STEADY, 0.5), "slow": slower(STEADY, 1.2), "slowest": slower(STEADY, 15)}
    lines = report(list(compare(old, new).values())).splitlines()
    header, rows = lines[:3], lines[3:]
    assert header[0].startswith("6 series compared") and "can't be judged" in header[1]
    assert [row.split()[1] for row in rows] == ["slowest", "slow", "same", "fine", "good", "fast", "tiny"]
    assert "1.000 s" in rows[0] and "15.00 s" in rows[0] and "2.000 ms" in rows[6]
    assert len({row.index(" s  ") for row in rows[:6]}) == 1, "medians are aligned"
    assert len({row.rindex("  ") for row in rows[:6]}) == 1, "verdicts are aligned"


# --- files ---


@pytest.fixture
def write(tmp_path):
    def to(name, value):
        schema.write(value, tmp_path / name)
        return tmp_path / name

    return to


def test_the_exit_code_says_whether_anything_became_slower(write, capsys):
    old, new = write("old.json", everything()), write("new.json", everything(1.2))
    assert compare_files(old, old) == 0 and "slower" not in capsys.readouterr().out
    assert compare_files(new, old) == 0 and "faster" in capsys.readouterr().out
    assert compare_files(old, new) == 1 and "slower" in capsys.readouterr().out


def test_a_series_that_is_gone_is_named(write, capsys):
    old, new = write("old.json", everything()), write("new.json", replace(everything(), ladder=[]))
    assert compare_files(old, new) == 0
    assert f"only in {old}: ladder layout\n" in capsys.readouterr().out


def test_another_cpu_is_a_warning(write, capsys):
    other = replace(everything(), environment=replace(CPU, cpu="another CPU"))
    assert compare_files(write("old.json", everything()), write("new.json", other)) == 0
    assert capsys.readouterr().out.startswith("warning: not the same CPU: a CPU, then another CPU\n")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "random:sd15"),
        ("steps", 10),
        ("dtype", "bfloat16"),
        ("resolutions", "64x64"),
        ("scheduler_label", "ddim"),
    ],
)
def test_other_settings_are_refused(name, value):
    with pytest.raises(UserError) as caught:
        changes(results({"a": STEADY}), results({"a": STEADY}, **{name: value}))
    assert f"{name} ({SETTINGS.get(name)}, then {value})" in str(caught.value) and "\n" not in str(caught.value)


def test_other_threads_are_refused_and_more_runs_are_not():
    old = results({"a": STEADY})
    with pytest.raises(UserError, match=r"differ in threads \(2, then 4\);"):
        changes(old, replace(old, environment=replace(CPU, threads=4)))
    assert changes(old, results({"a": STEADY * 2}, runs=10))[0].verdict == "-"


def test_nothing_in_common_is_refused():
    with pytest.raises(UserError, match="no series of runs in common"):
        changes(results({"a": STEADY}), results({"b": STEADY}))


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_a_run_that_took_no_time_is_refused(value):
    with pytest.raises(UserError, match=r"latency a 64x64 has a run of .* s; make it again"):
        changes(results({"a": STEADY}), results({"a": [*STEADY, value]}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: text[: len(text) // 2], "can't be read"),
        (lambda text: "", "can't be read"),
        (lambda text: json.dumps(json.loads(text) | {"schema": 99}), "has schema 99"),
        (lambda text: json.dumps({"schema": schema.SCHEMA}), "must have the keys"),
        (lambda text: text.replace('"total_seconds": [', '"total_seconds": ["a", ', 1), "wrong type"),
    ],
)
def test_a_file_that_is_no_result_is_refused(write, spoil, words):
    good, bad = write("old.json", everything()), write("new.json", everything())
    bad.write_text(spoil(bad.read_text()))
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(UserError, match=words) as caught:
            compare_files(*pair)
        assert "new.json" in str(caught.value)


def test_a_file_that_is_missing_is_refused(write, tmp_path):
    with pytest.raises(UserError, match=r"none\.json can't be read"):
        compare_files(write("old.json", everything()), tmp_path / "none.json")
