"""Pictures of several backends in turn: order, groups, what fails on the way, and what follows from the seconds."""

import pytest
from fake_painter import FakeSession

from benchmarks import pictures
from benchmarks.pictures import Pictures, groups, pair
from benchmarks.workers import WorkerError


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(pictures, "PAUSE_SECONDS", 0.0)


def draw(session, names, runs=3, warmups=1):
    return list(Pictures(session, session.work, "float32").side_by_side(names, runs, warmups))


def test_all_are_loaded_at_once_where_they_fit_else_each_beside_ours():
    names = ["eager", "openvino", "tvm"]
    assert groups(names, 10, 30) == groups(names, 10, None) == [names]
    assert groups(names, 10, 29) == [["tvm", "eager"], ["tvm", "openvino"]]
    assert groups(names[:2], 10, 9) == [["eager"], ["openvino"]]
    assert groups(["tvm"], 10, 9) == [["tvm"]]


def test_each_draws_once_a_round_and_another_begins_each_time(tmp_path):
    session = FakeSession(tmp_path)
    draw(session, ["eager", "openvino", "tvm"], runs=2, warmups=1)
    drawn = [name for name, steps, warm in session.log if warm is True and steps == 3]
    assert drawn == ["eager", "openvino", "tvm", "openvino", "tvm", "eager", "tvm", "eager", "openvino"]
    assert [entry for entry in session.log if entry[-1] is False] == [
        (n, 3, False) for n in ("eager", "openvino", "tvm")
    ]


def test_rows_have_the_counted_seconds_and_our_ratio(tmp_path):
    eager, ours = draw(FakeSession(tmp_path), ["eager", "tvm"])
    assert eager.total_seconds == [13.003, 13.004, 13.005], "without the first picture and the warm-up"
    assert ours.total_seconds == [4.003, 4.004, 4.005]
    assert eager.ours_seconds == ours.total_seconds
    pairs = [a / b for a, b in zip(ours.total_seconds, eager.total_seconds, strict=True)]
    assert eager.ratio == pairs[1] and eager.ratio_interval == [min(pairs), max(pairs)]
    assert ours.ratio is None and ours.ratio_interval is None
    assert ours.iterations_per_second == 3 / 3.004 and (ours.resolution, ours.size) == ("72x64", 1000)
    assert ours.psnr == 65.0, "the worst of its pictures"
    assert ours.picture == "pictures/m-72x64-picture-3-steps-tvm-float32.png" and ours.prepare_seconds == {"load": 0.5}


def test_with_groups_each_ratio_is_of_its_own_rounds(monkeypatch, tmp_path):
    monkeypatch.setattr(pictures, "available_memory", lambda: 1.0)
    session = FakeSession(tmp_path)
    eager, openvino, ours = draw(session, ["eager", "openvino", "tvm"], runs=2, warmups=0)
    assert eager.ratio == pytest.approx(4 / 13, rel=1e-3) and openvino.ratio == pytest.approx(4 / 7, rel=1e-3)
    assert eager.ours_seconds == openvino.ours_seconds == ours.total_seconds == [4.002, 4.003], "loaded twice"


def test_one_that_can_not_load_has_its_reason(tmp_path):
    session = FakeSession(tmp_path)
    session.broken.add("eager")
    session.refused["openvino", "float32"] = "not installed"
    eager, openvino, ours = draw(session, ["eager", "openvino", "tvm"])
    assert (eager.skipped, openvino.skipped, ours.skipped) == ("no luck", "not installed", None)
    assert eager.total_seconds == [] and len(ours.total_seconds) == 3


def test_one_that_fails_on_the_way_has_its_reason_and_the_others_go_on(tmp_path):
    session = FakeSession(tmp_path)
    session.fails["eager"] = (3, WorkerError("killed"))
    eager, ours = draw(session, ["eager", "tvm"], runs=4)
    assert eager.skipped == "killed" and ours.skipped is None and len(ours.total_seconds) == 4
    assert ("eager", "closed") in session.log


def test_after_ctrl_c_the_rounds_that_were_done_count(tmp_path):
    session = FakeSession(tmp_path)
    session.fails["tvm"] = (4, KeyboardInterrupt())
    rows, made = [], Pictures(session, session.work, "float32")
    with pytest.raises(KeyboardInterrupt):
        for row in made.side_by_side(["eager", "tvm"], 9, 1):
            rows.append(row)
    assert [(row.name, row.skipped, len(row.total_seconds)) for row in rows] == [("eager", None, 2), ("tvm", None, 2)]


def test_throughput_is_the_line_through_all_steps(tmp_path):
    session = FakeSession(tmp_path)
    (row,) = Pictures(session, session.work, "float32").throughput(["openvino"], 5)
    assert row.steps == [1, 2, 3, 4, 5] and row.seconds == pytest.approx([3.0, 5.0, 7.0, 9.0, 11.0], abs=0.01)
    assert (row.start_seconds, row.step_seconds) == pytest.approx((1, 2), abs=0.02) and 0.999 < row.r2 <= 1
    steps = [entry[1] for entry in session.log if len(entry) == 3][1:]
    assert sorted(steps) == row.steps and steps != row.steps, "in an order that is drawn"


def test_latency(tmp_path):
    session = FakeSession(tmp_path)
    session.broken.add("eager")
    (row,) = Pictures(session, session.work, "float32").latency(["eager", "tvm"], 7)
    assert row.name == "tvm" and len(row.seconds) == 7 and row.p50 == row.seconds[3] < row.p99 <= row.seconds[6]


def test_a_pair_draws_in_turn_and_one_session_once(tmp_path):
    before = FakeSession(tmp_path, factor=2.0)
    now = FakeSession(tmp_path)
    first, last = pair(before, now, "tvm", 3, 1, "")
    assert first.seconds() == [7.003, 7.004, 7.005] and last.seconds() == [4.003, 4.004, 4.005]
    first, last = pair(now, now, "tvm", 2, 0, "")
    assert first is last and last.seconds() == [4.002, 4.003]
    now.broken.add("tvm")
    assert pair(before, now, "tvm", 2, 0, "") == "no luck"
    before.fails["tvm"] = (2, WorkerError("killed"))
    assert pair(before, before, "tvm", 2, 0, "") == "killed"


@pytest.mark.parametrize("error", [WorkerError("killed"), KeyboardInterrupt()])
def test_what_was_drawn_before_a_failure_counts(error, tmp_path):
    session = FakeSession(tmp_path)
    session.fails["tvm"] = (5, error)
    made = Pictures(session, session.work, "float32")
    for rows, count in ((made.latency(["tvm"], 9), 4), (made.throughput(["tvm"], 9), 4)):
        found = []
        try:
            for row in rows:
                found.append(row)
        except KeyboardInterrupt:
            assert isinstance(error, KeyboardInterrupt)
        assert [len(row.seconds) for row in found] == [count]
    assert made.skipped == ({} if isinstance(error, KeyboardInterrupt) else {"tvm": "killed"})


def test_refused_ones_are_not_waited_for(monkeypatch, tmp_path):
    """They take no place in memory, and ours does not draw once more for each."""
    monkeypatch.setattr(pictures, "available_memory", lambda: 2.5 * 1_000_000_250)
    session = FakeSession(tmp_path)
    session.refused["openvino", "float32"] = "not installed"
    draw(session, ["eager", "openvino", "tvm"], runs=2, warmups=0)
    assert [name for name, steps, warm in session.log if warm is True] == ["eager", "tvm", "tvm", "eager"]
